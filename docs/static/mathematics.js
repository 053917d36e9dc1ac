// Renders each formula of the page with the bundled KaTeX. Without JavaScript its source shows.
document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".math")) {
    const source = place.textContent;
    katex.render(source, place, {
      displayMode: place.classList.contains("math-block"),
      throwOnError: true,
    });
    if (place.classList.contains("math-block")) {
      place.tabIndex = 0; // it may scroll sideways, and then the keyboard must reach it
    }
  }
});
