// Each figure is a link to itself at full size, where fingers can zoom.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll("article figure img, article .cell_output img")) {
    if (image.closest("a")) continue;
    const link = document.createElement("a");
    link.href = image.src;
    link.className = "full-size";
    link.setAttribute("aria-label", `${image.alt} Opens at full size.`);
    image.replaceWith(link);
    link.append(image);
  }
});
