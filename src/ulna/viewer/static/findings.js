// What is said of a mask: its classes with their volumes, what is unlike the training data, the Dice to expect, notes.

import { make } from "./dom.js";
import { colourOf, css } from "./palette.js";

const UNITS = { mm2: "mm²", px: "px", ml: "ml" };
const number = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: true });

function amount(trust, name) {
  const found = trust?.structures?.[name];
  if (!found) return null;
  if (!found.volume) return make("span", { class: "amount quiet", text: "none" });
  const pieces = found.objects > 1 ? make("small", { text: `${found.objects.toLocaleString("en")} pieces` }) : null;
  return make("span", { class: "amount", text: `${number(found.volume)} ${UNITS[trust.unit] ?? trust.unit ?? ""}` }, pieces);
}

// one line a class; toggled(number, on)
export function listClasses(list, told, colours, visible, toggled) {
  const rows = told.classes.map((name, index) => {
    const box = make("input", { type: "checkbox", onchange: () => toggled(index, box.checked) });
    box.checked = visible.has(index);
    const swatch = make("i", { colour: css(colourOf(colours, index)), "aria-hidden": "true" });
    return make("li", { "data-class": index }, make("label", {}, box, swatch, make("span", { text: name })), amount(told.trust, name));
  });
  list.replaceChildren(...rows);
}

function section(title, ...children) {
  return make("section", {}, make("h3", { text: title }), ...children);
}

function dice(predicted) {
  if (!predicted) return null;
  const between = (one) => (one.low === null || one.low === undefined ? "" : ` ${one.low.toFixed(2)} to ${one.high.toFixed(2)}`);
  const parts = [];
  if (predicted.mean) parts.push(make("p", { class: "dice", text: predicted.mean.dice.toFixed(2) }, make("small", { text: between(predicted.mean) })));
  const classes = Object.entries(predicted.classes ?? {});
  if (classes.length > 1 || !predicted.mean) {
    parts.push(make("ul", {}, ...classes.map(([name, one]) => make("li", { text: `${name}: ${one.dice.toFixed(2)}${between(one)}` }))));
  }
  if (!predicted.calibrated) parts.push(make("p", { class: "quiet", text: "Not calibrated: how much several answers agree, no more." }));
  else if (predicted.by_case === false) parts.push(make("p", { class: "quiet", text: "That of all validation cases: nothing tells more of this one." }));
  return section("Dice to expect", ...parts);
}

function flags(trust) {
  const found = trust?.flags;
  if (!found) return null;
  const rows = found.map((flag) => make("p", { class: "flag", text: flag.text || flag.what }));
  const left = Object.entries(trust.left_out ?? {});
  const compared = (trust.compared ?? []).length ? `Compared: ${trust.compared.join(", ")}.` : "Nothing could be compared.";
  if (!rows.length) rows.push(make("p", { class: "quiet", text: `Nothing odd was found. ${compared}` }));
  if (left.length) {
    const reasons = left.map(([rule, why]) => make("li", { text: `${rule}: ${why}` }));
    rows.push(make("details", {}, make("summary", { text: `Not compared (${left.length})` }), make("ul", {}, ...reasons)));
  }
  return section("Against the training data", ...rows);
}

function notes(told) {
  if (!told.notes?.length) return null;
  return section("Notes", make("ul", {}, ...told.notes.map((text) => make("li", { text }))));
}

function cases(told) {
  if (!told.cases) return null;
  const row = (one) => {
    const volumes = Object.keys(one.trust?.structures ?? {}).map((name) => `${name} ${amount(one.trust, name).textContent}`);
    const odd = (one.trust?.flags ?? []).map((flag) => flag.text);
    return make("tr", {}, make("th", { scope: "row", text: one.case }), make("td", { text: [...volumes, ...odd].join("; ") }));
  };
  return section(`${told.cases.length} images`, make("table", {}, make("tbody", {}, ...told.cases.map(row))));
}

export function listTold(holder, told) {
  const changed = Object.keys(told.trust?.post_processing ?? {});
  const cleaned = changed.length ? section("Cleaned", make("p", { class: "quiet", text: `Small or separate pieces were taken out, or holes filled, of: ${changed.join(", ")}.` })) : null;
  const parts = [flags(told.trust), dice(told.trust?.predicted_dice), cleaned, cases(told), notes(told)];
  holder.replaceChildren(...parts.filter((part) => part !== null));
}

// size, spacing and how long it took, in one line
export function facts(told) {
  const size = told.size ? `${told.size.join(" × ")} ${told.size.length === 2 ? "pixels" : "voxels"}` : "";
  const spacing = told.spacing && told.unit === "mm" ? `${told.spacing.join(" × ")} mm` : "";
  const step = told.view?.step > 1 ? `shown at 1/${told.view.step} of its size` : "";
  const seconds = told.seconds ? `${Number(told.seconds.toPrecision(2))} s` : "";
  return [size, spacing, step, seconds].filter(Boolean).join(" · ");
}
