// Runs before the page is shown, and where modules do not: says what to do if the page was opened from a file.
document.documentElement.classList.add(location.protocol === "file:" ? "from-file" : "building");
