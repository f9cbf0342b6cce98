// Runs where modules do not: shows what to do if the page was opened from a file.
if (location.protocol === "file:") document.documentElement.classList.add("from-file");
