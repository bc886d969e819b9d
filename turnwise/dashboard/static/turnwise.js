// What script adds to pages that are whole without it: theme, local times, copying, selection.
"use strict";
(() => {
  const THEMES = ["auto", "light", "dark"];
  const SHOWN = { auto: "◐", light: "☀", dark: "☾" };
  const NAMES = { auto: "automatic", light: "light", dark: "dark" };

  function showTheme(button) {
    const theme = document.documentElement.dataset.theme;
    button.hidden = false;
    button.textContent = SHOWN[theme];
    button.setAttribute("aria-label", `Colour theme: ${NAMES[theme]}`);
  }

  function nextTheme(button) {
    const root = document.documentElement;
    root.dataset.theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("turnwise-theme", root.dataset.theme);
    showTheme(button);
    document.dispatchEvent(new CustomEvent("turnwise:theme"));
  }

  const LOCAL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

  function showTimes(root) {
    for (const time of root.querySelectorAll("time[datetime]:not([data-shown])")) {
      const at = new Date(time.dateTime);
      const format = time.dataset.format === "time" ? TIME : LOCAL;
      if (!Number.isNaN(at.valueOf())) time.textContent = format.format(at);
      time.dataset.shown = "";
    }
  }

  // Text of an address of ours. Safari takes a promise of it only.
  async function copyFrom(button) {
    const label = button.textContent;
    const text = fetch(button.dataset.copyUrl).then((response) => {
      if (!response.ok) throw new Error(response.statusText);
      return response.blob().then((body) => new Blob([body], { type: "text/plain" }));
    });
    try {
      await navigator.clipboard.write([new ClipboardItem({ "text/plain": text })]);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Could not copy";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  async function copy(button) {
    const source = document.querySelector(button.dataset.copy);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(source.value ?? source.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
      getSelection().selectAllChildren(source);
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  function furnish(root) {
    showTimes(root);
    for (const button of root.querySelectorAll("[data-copy], [data-copy-url]")) button.hidden = false;
    for (const button of root.querySelectorAll("[data-theme-toggle]")) showTheme(button);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches("[data-theme-toggle]")) nextTheme(button);
    if (button.matches("[data-copy]")) copy(button);
    if (button.matches("[data-copy-url]")) copyFrom(button);
  });

  // A form that deletes asks once more.
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });

  document.addEventListener("DOMContentLoaded", () => furnish(document));
  document.addEventListener("htmx:after:swap", () => furnish(document));
})();
