// Tables for readers who do not use a mouse or do not see them.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  // What scrolls can be scrolled with the keyboard.
  const scrolls = (output) => output.scrollWidth > output.clientWidth;
  const outputs = [...document.querySelectorAll(".cell_output .text_html")].filter(scrolls);
  const tables = document.querySelectorAll(".pst-scrollable-table-container");
  for (const container of [...tables, ...outputs]) {
    container.tabIndex = 0;
    container.setAttribute("role", "group");
    container.setAttribute("aria-label", "Table, scrolls sideways");
  }
  // Some tables leave their corner as a heading without text.
  for (const heading of document.querySelectorAll("article th")) {
    if (!heading.textContent.trim()) heading.replaceWith(document.createElement("td"));
  }
});
