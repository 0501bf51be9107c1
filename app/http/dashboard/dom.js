// Small helpers that make elements; text is always set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: h("p", {class: "note"}, "text", child). */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, with the same arguments. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A <dl> entry. */
export function fact(name, value, attributes) {
  return h("div", attributes, h("dt", {}, name), h("dd", {}, value));
}

/** A group of buttons, one of which is pressed; calls back with its index. */
export function choice(label, names, choose, chosen = 0) {
  const buttons = names.map((name, index) =>
    h("button", { type: "button", "aria-pressed": String(index === chosen), onclick: () => press(index) }, name),
  );
  function press(index) {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    choose(index);
  }
  return h("span", { class: "choice", role: "group", "aria-label": label }, ...buttons);
}
