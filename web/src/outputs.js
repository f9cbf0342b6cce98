/** From logits to labels, entities and answers, as the pipelines of transformers give them. */

/** @typedef {import("./wordpiece.js").Token} Token */
/** @typedef {import("./tokenizer.js").Encoding} Encoding */
/** @typedef {import("./tokenizer.js").Engine} Engine */
/** @typedef {{label: string, score: number}} Label */
/** @typedef {{entity_group: string, score: number, word: string, start: number, end: number}} Entity */
/** @typedef {{answer: string, score: number, start: number | null, end: number | null}} Answer */

const LONGEST = 30; // tokens of an answer, as in transformers' run_qa.py

/** @param {ArrayLike<number>} logits @returns {number[]} Probabilities. */
export function softmax(logits) {
  const values = Array.from(logits);
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = values.map((value) => Math.exp(value - largest));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((value) => value / sum);
}

/**
 * @param {any} config
 * @param {string} task
 * @param {ArrayLike<number>} logits
 * @returns {number[]} Probabilities, or the plain numbers of a regression.
 */
export function scores(config, task, logits) {
  let problem = config.problem_type ?? null;
  if (task === "reranking") {
    const activation = String(config.sentence_transformers?.activation_fn ?? "Sigmoid"); // as CrossEncoder does
    problem = activation.endsWith("Identity") ? "regression" : null;
  }
  if (problem === "regression") return Array.from(logits);
  if (problem === "multi_label_classification" || (problem === null && logits.length === 1)) {
    return Array.from(logits, (value) => 1 / (1 + Math.exp(-value)));
  }
  return softmax(logits);
}

/**
 * The best labels first; equal ones in the order of the classes.
 * @param {string[]} labels
 * @param {number[]} scores
 * @param {number | null} topK
 * @returns {Label[]}
 */
export function best(labels, scores, topK) {
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, topK ?? order.length).map((i) => ({ label: labels[i], score: scores[i] }));
}

/** @param {string} tag @returns {string} */
const kind = (tag) => (/^[BI]-/.test(tag) ? tag.slice(2) : tag);

/**
 * Neighbours with one tag as one entity, of which B- begins another: aggregation_strategy="simple".
 * @param {string} text
 * @param {Encoding} encoding
 * @param {Float32Array} logits Of each token, one row after another.
 * @param {string[]} labels
 * @param {Engine} engine
 * @returns {Entity[]}
 */
export function entities(text, encoding, logits, labels, engine) {
  /** @type {{tag: string, score: number, word: string, start: number, end: number}[][]} */
  const groups = [];
  encoding.tokens.forEach(({ token, start, end }, i) => {
    if (encoding.parts[i] < 0) return;
    const row = softmax(logits.subarray(i * labels.length, (i + 1) * labels.length));
    const top = row.reduce((a, b, j) => (b > row[a] ? j : a), 0);
    const word = token === engine.unknown ? text.slice(start, end) : token;
    const part = { tag: labels[top], score: row[top], word, start, end };
    const last = groups.at(-1);
    if (last && kind(part.tag) === kind(last[last.length - 1].tag) && !part.tag.startsWith("B-")) last.push(part);
    else groups.push([part]);
  });
  return groups
    .map((group) => ({
      entity_group: group[0].tag.replace(/^[^-]*-/, ""),
      score: group.reduce((sum, part) => sum + part.score, 0) / group.length,
      word: engine.decode(group.map((part) => part.word)),
      start: group[0].start,
      end: group[group.length - 1].end,
    }))
    .filter((group) => group.entity_group !== "O");
}

/**
 * The best span of a context over its windows.
 * @param {string} context
 * @param {{encoding: Encoding, logits: Float32Array}[]} windows Logits of start and end of each token.
 * @param {boolean} unanswerable Whether the answer may be empty: where [CLS] scores more than any span.
 * @returns {Answer}
 */
export function answer(context, windows, unanswerable) {
  /** @type {Answer} */
  let found = { answer: "", score: 0, start: null, end: null };
  let highest = -Infinity;
  let none = { sum: Infinity, score: 0 };
  for (const { encoding, logits } of windows) {
    const places = encoding.parts.map((part, i) => part === 1 || i === 0); // [CLS] stands for no answer
    /** @param {number} side */
    const side = (side) => encoding.parts.map((_, i) => (places[i] ? logits[2 * i + side] : -Infinity));
    const [starts, ends] = [side(0), side(1)];
    const [startScores, endScores] = [softmax(starts), softmax(ends)];
    if (starts[0] + ends[0] < none.sum) none = { sum: starts[0] + ends[0], score: startScores[0] * endScores[0] };
    for (let first = 0; first < starts.length; first++) {
      if (encoding.parts[first] !== 1) continue;
      for (let last = first; last < Math.min(first + LONGEST, ends.length) && encoding.parts[last] === 1; last++) {
        if (starts[first] + ends[last] <= highest) continue;
        highest = starts[first] + ends[last];
        const [start, end] = [encoding.tokens[first].start, encoding.tokens[last].end];
        const score = startScores[first] * endScores[last];
        found = { answer: context.slice(start, end), score, start, end };
      }
    }
  }
  if (unanswerable && none.sum > highest) return { answer: "", score: none.score, start: null, end: null };
  return found;
}
