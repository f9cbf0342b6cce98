// The page of an exported model: what it shows follows the tasks of the models that `site` in index.html names.
import { load } from "./hf-xtc/hf-xtc.js";

const site = JSON.parse(document.getElementById("site").textContent);
const byId = (id) => document.getElementById(id);

/** An element with properties and children. */
function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const percent = (score) => `${(100 * score).toFixed(1)} %`;
const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

/** Runs a function for the newest input only: what came while it ran is run once it is done. */
function newest(run) {
  let busy = false;
  let next = null;
  return async function ask(...args) {
    next = args;
    if (busy) return;
    busy = true;
    while (next) {
      const now = next;
      next = null;
      try {
        await run(...now);
      } catch (error) {
        say(error.message, true);
      }
    }
    busy = false;
  };
}

async function timed(work) {
  const start = performance.now();
  const value = await work;
  byId("time").textContent = milliseconds(performance.now() - start);
  return value;
}

/** A text field with its name, and examples that fill it. */
function field(name, { rows = 3, examples = [], placeholder = "", value = "" } = {}) {
  const id = `field-${field.count++}`;
  const area = h("textarea", { id, rows, placeholder, value, spellcheck: false });
  const chips = examples.map((text) =>
    h(
      "button",
      {
        type: "button",
        className: "example",
        title: text,
        onclick: () => {
          area.value = text;
          area.dispatchEvent(new Event("input"));
          area.focus();
        },
      },
      text,
    ),
  );
  const parts = [h("label", { className: "name", htmlFor: id }, name), area];
  if (chips.length) parts.push(h("div", { className: "row" }, ...chips));
  return { area, parts };
}
field.count = 0;

function intro(model) {
  return model.about ? [h("p", { className: "about" }, model.about)] : [];
}

/** Bars of labels, the best first; as many lines at every time, so that nothing moves. */
function scoreList(model) {
  const plain = model.task === "regression";
  const count = Math.min(model.labels.length, 6);
  const lines = Array.from({ length: count }, () => {
    const [label, value, bar] = [h("span", { className: "label" }, "–"), h("span", { className: "value" }), h("div")];
    const line = h("div", { className: "line" }, label, value);
    const track = plain ? [] : [h("div", { className: "track" }, bar)];
    return { item: h("li", {}, line, ...track), label, value, bar };
  });
  const list = h("ol", { className: "scores" }, ...lines.map(({ item }) => item));
  list.setAttribute("aria-live", "polite");
  const show = (found) =>
    lines.forEach(({ item, label, value, bar }, i) => {
      label.textContent = found ? found[i].label : "–";
      value.textContent = found ? (plain ? found[i].score.toFixed(3) : percent(found[i].score)) : "";
      bar.style.transform = `scaleX(${found ? Math.min(Math.max(found[i].score, 0), 1) : 0})`;
      item.classList.toggle("best", !!found && i === 0);
    });
  return { list, show };
}

function classifier(model, loaded) {
  const { area, parts } = field("Text", { examples: model.examples, placeholder: "Type a text" });
  const second = h("textarea", { className: "second", rows: 2, placeholder: "Second text", hidden: !model.pair });
  second.setAttribute("aria-label", "Second text");
  const { list, show } = scoreList(model);
  const answer = newest(async () => {
    const text = area.value;
    if (!text.trim()) return show(null);
    const input = second.hidden ? text : [text, second.value];
    const runtime = await loaded;
    const [found] = await timed(runtime.classify([input], { topK: null }));
    show(found);
  });
  area.oninput = second.oninput = answer;
  const toggle = h(
    "button",
    {
      type: "button",
      className: "example",
      onclick: () => {
        second.hidden = !second.hidden;
        toggle.textContent = second.hidden ? "Add a second text" : "Without the second text";
        answer();
      },
    },
    model.pair ? "Without the second text" : "Add a second text",
  );
  const row = parts.at(-1).classList.contains("row") ? parts.pop() : h("div", { className: "row" });
  row.append(toggle);
  area.value = model.examples?.[0] ?? "";
  answer();
  return [
    h("section", { className: "card" }, ...parts, second, row, list),
    batch(model, loaded),
  ];
}

function batch(model, loaded) {
  const { area, parts } = field("Many texts, one a line", { rows: 5, value: (model.examples ?? []).join("\n") });
  const body = h("tbody");
  const note = h("span", { className: "hint" });
  const table = h(
    "div",
    { className: "table", hidden: true, tabIndex: 0 },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("th", {}, "Text"), h("th", {}, "Label"), h("th", { className: "number" }, "Score"))),
      body,
    ),
  );
  table.setAttribute("aria-label", "Labels of the texts");
  let rows = [];
  const copy = h("button", { type: "button", disabled: true, onclick: () => save(rows) }, "Save as CSV");
  const run = h("button", { type: "button", className: "main" }, "Classify all");
  run.onclick = newest(async () => {
    const texts = area.value.split("\n").filter((line) => line.trim());
    if (!texts.length) return;
    const runtime = await loaded;
    run.disabled = true;
    try {
      const start = performance.now();
      const found = await runtime.classify(texts);
      const time = performance.now() - start;
      rows = texts.map((text, i) => [text, found[i][0].label, found[i][0].score]);
      body.replaceChildren(
        ...rows.map(([text, label, score]) =>
          h(
            "tr",
            {},
            h("td", {}, text),
            h("td", { className: "tag" }, label),
            h("td", { className: "number" }, model.task === "regression" ? score.toFixed(3) : percent(score)),
          ),
        ),
      );
      table.hidden = false;
      copy.disabled = false;
      note.textContent = `${texts.length} texts in ${milliseconds(time)}, ${milliseconds(time / texts.length)} each`;
    } finally {
      run.disabled = false;
    }
  });
  return h("section", { className: "card" }, ...parts, h("div", { className: "row" }, run, copy, note), table);
}

function save(rows) {
  const cell = (value) => `"${String(value).replaceAll('"', '""')}"`;
  const text = [["text", "label", "score"], ...rows].map((row) => row.map(cell).join(",")).join("\r\n");
  const url = URL.createObjectURL(new Blob([text + "\r\n"], { type: "text/csv" }));
  h("a", { href: url, download: "labels.csv" }).click();
  URL.revokeObjectURL(url);
}

const unit = (vector) => {
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
};
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function searcher(model, loaded) {
  const query = h("input", { type: "text", id: "query", placeholder: "Type what you look for", autocomplete: "off" });
  query.value = model.examples?.[0] ?? "";
  const found = h("ol", { className: "found" });
  found.setAttribute("aria-live", "polite");
  const note = h("p", { className: "hint" }, "\u00a0");
  const { area, parts } = field("Sentences to search, one a line", {
    rows: 9,
    value: (model.sentences ?? []).join("\n"),
  });
  const vectors = new Map();

  const answer = newest(async () => {
    const runtime = await loaded;
    const sentences = [...new Set(area.value.split("\n").map((line) => line.trim()).filter(Boolean))];
    const fresh = sentences.filter((text) => !vectors.has(text));
    const start = performance.now();
    for (let i = 0; i < fresh.length; i += 32) {
      note.textContent = `Reading ${Math.min(i + 32, fresh.length)} of ${fresh.length} sentences`;
      const part = fresh.slice(i, i + 32);
      const read = await runtime.embed(part);
      part.forEach((text, j) => vectors.set(text, unit(read[j])));
    }
    if (fresh.length) {
      const time = performance.now() - start;
      note.textContent = `${fresh.length} sentences read in ${milliseconds(time)}, ${milliseconds(time / fresh.length)} each`;
    }
    if (!query.value.trim()) return found.replaceChildren();
    const [asked] = await timed(runtime.embed([query.value]));
    const vector = unit(asked);
    const ranked = sentences
      .map((text) => ({ text, score: dot(vector, vectors.get(text)) }))
      .sort((a, b) => b.score - a.score)
      .slice(0, 8);
    found.replaceChildren(
      ...ranked.map(({ text, score }) =>
        h(
          "li",
          {},
          h("span", { className: "text" }, text),
          h("span", { className: "value", title: "Cosine similarity" }, score.toFixed(2)),
        ),
      ),
    );
  });
  query.oninput = answer;
  let waiting;
  area.oninput = () => {
    clearTimeout(waiting);
    waiting = setTimeout(answer, 400);
  };
  const chips = (model.examples ?? []).map((text) =>
    h(
      "button",
      {
        type: "button",
        className: "example",
        onclick: () => {
          query.value = text;
          answer();
          query.focus();
        },
      },
      text,
    ),
  );
  answer();
  return [
    h(
      "section",
      { className: "card" },
      h("label", { className: "name", htmlFor: "query" }, "Search by meaning"),
      query,
      h("div", { className: "row" }, ...chips),
      found,
    ),
    h("section", { className: "card" }, ...parts, note),
  ];
}

/** A text with marks. */
function marked(text, marks, hueOf) {
  const parts = [];
  let at = 0;
  for (const { start, end, label } of marks) {
    const mark = h("mark", {}, text.slice(start, end), h("small", {}, label));
    mark.style.setProperty("--hue", hueOf(label));
    parts.push(text.slice(at, start), mark);
    at = end;
  }
  return [...parts, text.slice(at)];
}

function tagger(model, loaded) {
  const { area, parts } = field("Text", { rows: 4, examples: model.examples, placeholder: "Type a text" });
  const output = h("p", { className: "marked" });
  output.setAttribute("aria-live", "polite");
  const kinds = [...new Set(model.labels.map((label) => label.replace(/^[BI]-/, "")))].filter((kind) => kind !== "O");
  const hueOf = (label) => Math.round((360 * kinds.indexOf(label)) / kinds.length + 210) % 360;
  const answer = newest(async () => {
    const text = area.value;
    const runtime = await loaded;
    const [found] = await timed(runtime.tag([text]));
    output.replaceChildren(
      ...marked(text, found.map(({ start, end, entity_group }) => ({ start, end, label: entity_group })), hueOf),
    );
  });
  area.oninput = answer;
  area.value = model.examples?.[0] ?? "";
  answer();
  return [h("section", { className: "card" }, ...parts, output)];
}

function reader(model, loaded) {
  const context = field("Text", { rows: 8, value: model.examples?.[0] ?? "" });
  const question = field("Question", { rows: 1, value: model.examples?.[1] ?? "" });
  const output = h("p", { className: "marked" });
  output.setAttribute("aria-live", "polite");
  const answer = newest(async () => {
    const text = context.area.value;
    if (!text.trim() || !question.area.value.trim()) return output.replaceChildren();
    const runtime = await loaded;
    const [found] = await timed(runtime.answer([question.area.value], [text]));
    const marks = found.start === null ? [] : [{ ...found, label: percent(found.score) }];
    output.replaceChildren(...(marks.length ? marked(text, marks, () => 210) : ["The text holds no answer."]));
  });
  context.area.oninput = question.area.oninput = answer;
  answer();
  return [h("section", { className: "card" }, ...context.parts, ...question.parts, output)];
}

const VIEWS = { "token-classification": tagger, "question-answering": reader, "sentence-embedding": searcher };

/** Bytes and seconds of the models that are loaded, by model. */
const figures = new Map();

function tell(model) {
  const { bytes, seconds } = figures.get(model);
  byId("megabytes").textContent = `${(bytes / 1e6).toFixed(1)} MB`;
  byId("ready").textContent = `${seconds.toFixed(2)} s`;
  say("Ready. It also works without a network from now on.");
}

/** Loads a model, and shows how far it is. */
async function start(model) {
  const began = performance.now();
  say("Loading the model");
  const filled = byId("filled");
  filled.style.transform = "scaleX(0)";
  const onProgress = ({ loaded, total }) => {
    const share = Math.min(loaded / Math.max(total ?? model.bytes ?? loaded, loaded, 1), 1);
    filled.style.transform = `scaleX(${share})`;
    byId("megabytes").textContent = `${(loaded / 1e6).toFixed(1)} MB`;
  };
  const runtime = await load(model.folder, { onProgress, maxLength: model.max_length });
  filled.style.transform = "scaleX(1)";
  figures.set(model, { bytes: runtime.bytes, seconds: (performance.now() - began) / 1000 });
  tell(model);
  document.documentElement.dataset.ready = "true";
  return runtime;
}

function show() {
  document.title = byId("title").textContent = site.title;
  const opened = new Map();
  const tabs = site.models.map((model, i) =>
    h("button", { type: "button", role: "tab", id: `tab-${i}`, onclick: () => open(i) }, model.name),
  );
  function open(chosen) {
    if (!opened.has(chosen)) {
      const model = site.models[chosen];
      const loaded = start(model);
      loaded.catch((error) => say(error.message, true));
      const view = VIEWS[model.task] ?? classifier;
      opened.set(chosen, h("div", {}, ...intro(model), ...view(model, loaded)));
      opened.get(chosen).setAttribute("role", site.models.length > 1 ? "tabpanel" : "group");
      opened.get(chosen).setAttribute("aria-label", model.name);
      byId("main").append(opened.get(chosen));
    } else if (figures.has(site.models[chosen])) {
      tell(site.models[chosen]);
    }
    for (const [i, element] of opened) element.hidden = i !== chosen;
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", i === chosen);
      tab.tabIndex = i === chosen ? 0 : -1;
    });
  }
  byId("tabs").append(...tabs);
  byId("tabs").hidden = tabs.length < 2;
  byId("tabs").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    tabs[next].focus();
    open(next);
  };
  open(0);
  document.documentElement.classList.remove("building");
}

show();
const network = () => (byId("network").textContent = navigator.onLine ? "on" : "off");
network();
addEventListener("online", network);
addEventListener("offline", network);
if ("serviceWorker" in navigator) navigator.serviceWorker.register("service-worker.js");
