// Elements whose text is always text: what a file, a server or a class is called is never markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, fields = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "colour") made.style.backgroundColor = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// a sentence in its place, or no place at all
export function say(element, text) {
  element.textContent = text || "";
  element.hidden = !text;
}
