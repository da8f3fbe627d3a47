"use strict";
(() => {
  const all = (selector, place = document) => [...place.querySelectorAll(selector)];
  const kept = {
    get: (store, key) => { try { return window[store].getItem(key); } catch { return null; } },
    set: (store, key, value) => { try { window[store].setItem(key, value); } catch { /* not kept, then */ } },
  };

  // Light, dark, or the system's setting.
  const themes = { "": "system", light: "light", dark: "dark" };
  const button = document.getElementById("theme");
  const useTheme = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.querySelector("span").textContent = themes[theme];
    kept.set("localStorage", "dagflow-theme", theme);
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const names = Object.keys(themes);
    useTheme(names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length]);
  });
  const theme = kept.get("localStorage", "dagflow-theme");
  if (theme && theme in themes) useTheme(theme);

  // Explain a word on hover and on focus; Escape hides the explanation.
  const tip = document.getElementById("tip");
  const hideTip = () => { tip.hidden = true; };
  const showTip = (word) => {
    tip.textContent = word.dataset.tip;
    tip.hidden = false;
    const box = word.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 6) + scrollY}px`;
  };
  for (const word of all(".term")) {
    word.setAttribute("aria-describedby", "tip");
    for (const name of ["mouseenter", "focus"]) word.addEventListener(name, () => showTip(word));
    word.addEventListener("blur", hideTip);
    word.addEventListener("mouseleave", (event) => { if (event.relatedTarget !== tip) hideTip(); });
  }
  tip.addEventListener("mouseleave", hideTip);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  // A pointer or the arrow keys read a chart.
  for (const plot of all(".plot")) {
    const data = JSON.parse(plot.querySelector("script").textContent);
    const cursor = plot.querySelector(".cursor");
    const readout = plot.querySelector(".readout");
    let place = data.x.length - 1;
    const hide = () => { cursor.hidden = readout.hidden = true; };
    const show = (k) => {
      place = k;
      cursor.replaceChildren();
      readout.replaceChildren(Object.assign(document.createElement("b"), { textContent: data.when[k] }));
      for (const line of data.lines) {
        if (line.text[k] === null) continue;
        const dot = document.createElement("i");
        dot.className = `s${line.colour}`;
        dot.style.top = `${line.y[k]}%`;
        cursor.append(dot);
        const row = document.createElement("span");
        const key = document.createElement("i");
        key.className = `key s${line.colour}`;
        row.append(key, `${line.name} ${line.text[k]}`);
        readout.append(row);
      }
      cursor.style.left = `${data.x[k]}%`;
      cursor.hidden = readout.hidden = false;
      const right = data.x[k] > 50;
      readout.style.left = right ? "auto" : `calc(${data.x[k]}% + 12px)`;
      readout.style.right = right ? `calc(${100 - data.x[k]}% + 12px)` : "auto";
    };
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-roledescription", "chart");
    plot.setAttribute("aria-label", `${plot.dataset.label}; left and right arrow keys read its values`);
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const x = 100 * (event.clientX - box.left) / box.width;
      show(data.x.reduce((best, at, k) => Math.abs(at - x) < Math.abs(data.x[best] - x) ? k : best, 0));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(place); });
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: data.x.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(Math.max(0, Math.min(data.x.length - 1, to)));
    });
  }

  // The wall: one slider moves all of a run's pictures through its epochs.
  for (const wall of all(".wall")) {
    const epochs = JSON.parse(wall.dataset.epochs);
    const slider = wall.querySelector("input");
    const output = wall.querySelector("output");
    const play = wall.querySelector(".play");
    const pictures = all(".now", wall).map((image) => {
      const frames = JSON.parse(image.closest("figure").querySelector("script").textContent);
      return { image, frames: [...frames, image.src] };
    });
    const show = () => {
      const k = Number(slider.value);
      output.textContent = epochs[k];
      slider.setAttribute("aria-valuetext", `epoch ${epochs[k]}`);
      for (const { image, frames } of pictures) {
        image.src = frames[k];
        image.alt = `${image.dataset.prompt}, ${epochs[k] ? `epoch ${epochs[k]}` : "base model"}`;
      }
    };
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (Number(slider.value) === epochs.length - 1) slider.value = 0;
      play.textContent = "Stop";
      show();
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (Number(slider.value) === epochs.length - 1) stop();
      }, 500);
    });
    slider.addEventListener("input", () => { stop(); show(); });
    slider.addEventListener("change", show);
    slider.parentElement.hidden = false;
    show();
  }

  // With several runs, show one at a time, the same one in every part of the page.
  const choosers = all(".panels").filter((place) => all(".panel", place).length > 1).map((place, part) => {
    const list = document.createElement("div");
    list.className = "tabs";
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", "Runs");
    const panels = all(".panel", place);
    const tabs = panels.map((panel, k) => {
      const tab = document.createElement("button");
      Object.assign(tab, { type: "button", id: `tab-${part}-${k}`, textContent: panel.dataset.name });
      panel.id = `panel-${part}-${k}`;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      tab.addEventListener("click", () => choose(k));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        const next = (k + step + tabs.length) % tabs.length;
        choose(next);
        tabs[next].focus();
      });
      return tab;
    });
    list.append(...tabs);
    place.prepend(list);
    return { panels, tabs };
  });
  let chosen = 0;
  const choose = (number) => {
    chosen = number;
    for (const { panels, tabs } of choosers) {
      panels.forEach((panel, k) => { panel.hidden = k !== number; });
      tabs.forEach((tab, k) => {
        tab.setAttribute("aria-selected", String(k === number));
        tab.tabIndex = k === number ? 0 : -1;
      });
    }
  };
  if (choosers.length) choose(0);

  // A served page: poll its version, reload when it changes, and return to where the reader was.
  const version = document.documentElement.dataset.version;
  if (!version) return;
  const before = JSON.parse(kept.get("sessionStorage", "dagflow-place") || "null");
  if (before) {
    if (choosers.length && before.chosen < choosers[0].panels.length) choose(before.chosen);
    for (const slider of all("input[type=range]")) {
      const value = before.sliders[slider.id];
      if (value === undefined) continue; // a slider at its end follows the newest epoch
      slider.value = value;
      slider.dispatchEvent(new Event("change"));
    }
    all("details").forEach((item, k) => { item.open = Boolean(before.open[k]); });
    document.documentElement.style.scrollBehavior = "auto";
    scrollTo(0, before.scroll);
    document.documentElement.style.scrollBehavior = "";
    if (before.focus) document.getElementById(before.focus)?.focus({ preventScroll: true });
  }
  history.scrollRestoration = "manual";
  const keepPlace = () => {
    const moved = all("input[type=range]").filter((slider) => slider.value !== slider.max);
    kept.set("sessionStorage", "dagflow-place", JSON.stringify({
      chosen,
      sliders: Object.fromEntries(moved.map((slider) => [slider.id, slider.value])),
      open: all("details").map((item) => item.open),
      scroll: scrollY,
      focus: document.activeElement?.id || "",
    }));
  };
  addEventListener("pagehide", keepPlace);
  setInterval(async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== version) location.reload();
    } catch { /* the server has gone; the page stays as it is */ }
  }, 2000);
})();
