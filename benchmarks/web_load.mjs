// Opens a page in a fresh context of Chromium: node web_load.mjs CHROMIUM URL SELECTOR -> seconds until the element has a label.
import { chromium } from "../web/node_modules/playwright-core/index.mjs";

const [executablePath, url, selector] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await (await browser.newContext({ serviceWorkers: "block" })).newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  await page.goto(url, { waitUntil: "commit" });
  const found = await page
    .waitForFunction(
      (selector) => {
        const element = document.querySelector(selector);
        const label = element?.dataset.label ?? element?.textContent ?? "–";
        return label === "–" ? null : performance.now() / 1000;
      },
      selector,
      { timeout: 60000, polling: 5 },
    )
    .catch((error) => Promise.reject(new Error(`${errors.join("; ")} ${error.message}`)));
  process.stdout.write(String(await found.jsonValue()));
} finally {
  await browser.close();
}
