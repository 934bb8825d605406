// What the server answers.

async function ask(address, parameters = {}) {
  const url = new URL(`./${address}`, import.meta.url);
  url.search = new URLSearchParams(parameters);
  const response = await fetch(url);
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({ error: `${address}: ${response.status}` }));
  throw new Error(answer.error ?? response.statusText);
}

const json = async (...asked) => (await ask(...asked)).json();

export const fetchRuns = async () => (await json("runs")).runs;
export const fetchVerdicts = async () => (await json("verdicts")).verdicts;
export const fetchFindings = (run) => json("findings", { run });
export const fetchLayer = (run, layer) => json("layer", { run, layer });

/** A map whose `cells` are a Float32Array, row by row. They follow the JSON text, whose length comes first. */
export async function fetchMap(run, query) {
  const held = await (await ask("map", { run, ...query })).arrayBuffer();
  const length = new DataView(held).getUint32(0, true);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(held, 4, length)));
  return { ...told, cells: new Float32Array(held, 4 + length) };
}
