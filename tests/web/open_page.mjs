// Opens a page in Chromium and tells what happened: node open_page.mjs CHROMIUM URL [WIDTH].
import { chromium } from "../../web/node_modules/playwright-core/index.mjs";

const [executablePath, url, width = "1200"] = process.argv.slice(2);
const report = { requests: [], messages: [], errors: [] };
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: Number(width), height: 800 } });
context.on("request", (request) => report.requests.push(request.url()));
const page = await context.newPage();
page.on("console", (message) => report.messages.push(message.text()));
page.on("pageerror", (error) => report.errors.push(error.message));
await page.addInitScript(() => {
  globalThis.shifted = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) globalThis.shifted += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
});

/** What the page shows once it has an answer. */
async function shown() {
  await page.waitForFunction(() => document.getElementById("time").textContent !== "–", null, { timeout: 20000 });
  return page.evaluate(() => ({
    title: document.title,
    status: document.getElementById("status").textContent,
    best: document.querySelector(".scores .best .label")?.textContent ?? null,
    lines: [...document.querySelectorAll(".scores .line, .found li, .marked")].map((line) => line.textContent),
    marks: [...document.querySelectorAll("mark")].map((mark) => mark.textContent),
    megabytes: document.getElementById("megabytes").textContent,
  }));
}

try {
  await page.goto(url);
  if (url.startsWith("file:")) {
    report.note = await page.locator(".file-note").innerText();
    report.footer = await page.locator("footer").isVisible();
  } else {
    report.first = await shown();
    report.shifted = await page.evaluate(() => globalThis.shifted);
    report.widths = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    const button = page.getByRole("button", { name: "Classify all" });
    if (await button.count()) {
      await page.getByLabel("Many texts, one a line").fill("a joy\n\ndull and long\n");
      await button.focus();
      await page.keyboard.press("Enter");
      await page.waitForSelector("tbody tr:nth-child(2)");
      report.rows = await page.locator("tbody tr").allInnerTexts();
      const field = page.getByLabel("Text", { exact: true });
      await field.fill("");
      await field.pressSequentially("dull and long");
      await page.waitForFunction(() => document.querySelector(".scores .best .label")?.textContent === "negative");
    }
    await page.evaluate(() => navigator.serviceWorker.ready);
    await page.waitForFunction(async () => (await (await caches.open("hf-xtc-page")).keys()).length >= 8);
    await context.setOffline(true);
    await page.reload();
    report.offline = await shown();
    report.network = await page.locator("#network").innerText();
  }
} catch (error) {
  report.failed = String(error);
}
await browser.close();
process.stdout.write(JSON.stringify(report));
