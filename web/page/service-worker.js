// Keeps the page itself for use without a network; the files of models are kept by the module that loads them.
const CACHE = "hf-xtc-page";
const FILES = [
  "./",
  "page.css",
  "start.js",
  "page.js",
  "icon.svg",
  "hf-xtc/hf-xtc.js",
  "hf-xtc/hf-xtc-worker.js",
  "hf-xtc/tokenizers.js",
];
const known = new Set(FILES.map((file) => new URL(file, registration.scope).href));

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
});

addEventListener("activate", (event) => event.waitUntil(clients.claim()));

// The newest from the network; without one, what was kept.
addEventListener("fetch", (event) => {
  const url = event.request.url.split(/[?#]/)[0].replace(/\/index\.html$/, "/");
  if (!known.has(url)) return;
  event.respondWith(
    (async () => {
      const cache = await caches.open(CACHE);
      try {
        const response = await fetch(event.request);
        if (response.ok) await cache.put(url, response.clone());
        return response;
      } catch (error) {
        return (await cache.match(url)) ?? Promise.reject(error);
      }
    })(),
  );
});
