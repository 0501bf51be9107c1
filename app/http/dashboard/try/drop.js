// A button that accepts a file, selected or dropped on it.

import { h } from "../dom.js";

/** The element; `take` is called with each file. */
export function dropZone(text, accept, take) {
  const file = h("input", { type: "file", accept, class: "file", onchange: () => file.files[0] && take(file.files[0]) });
  const over = (event) => {
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
  };
  const zone = h(
    "label",
    {
      class: "drop",
      ondragover: over,
      ondragleave: over,
      ondrop: (event) => {
        over(event);
        if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
      },
    },
    `${text}, or drop one here`,
    file,
  );
  return zone;
}
