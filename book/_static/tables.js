// Tables for readers who do not use a mouse or do not see them.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  // What scrolls can be scrolled with the keyboard.
  for (const container of document.querySelectorAll(".pst-scrollable-table-container")) {
    container.tabIndex = 0;
    container.setAttribute("role", "group");
    container.setAttribute("aria-label", "Table, scrolls sideways");
  }
  // Some tables leave their corner as a heading without text.
  for (const heading of document.querySelectorAll("article th")) {
    if (!heading.textContent.trim()) heading.replaceWith(document.createElement("td"));
  }
});
