// Models with named columns in their rows: from their card, or because each input is a column.

const TYPES = { BOOL: "boolean", BYTES: "text" };

function columnOf(input) {
  const type = TYPES[input.datatype] ?? (/^U?INT/.test(input.datatype) ? "integer" : "number");
  return { name: input.name, type, description: input.description };
}

/** {columns, samples} of a model that takes a table, else null; samples are rows of values in the order of columns. */
export function tableOf({ inputs }) {
  const [first] = inputs;
  const fits = first?.columns && first.shape.length === 2 && [-1, first.columns.length].includes(first.shape[1]);
  if (inputs.length === 1 && fits && first.datatype !== "BYTES") return { columns: first.columns, samples: first.sample_rows ?? [] };
  const isColumn = ({ shape }) => shape[0] === -1 && (shape.length === 1 || (shape.length === 2 && shape[1] === 1));
  return inputs.length > 0 && inputs.every(isColumn) ? { columns: inputs.map(columnOf), samples: [] } : null;
}

/** A value as a cell of CSV (RFC 4180). */
const cell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

/** The names of the columns, then rows. */
export const csv = (columns, rows) =>
  [columns.map((column) => column.name), ...rows].map((row) => row.map(cell).join(",")).join("\n");
