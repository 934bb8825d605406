// What the server answers.

async function ask(address, parameters = {}) {
  const url = new URL(`./${address}`, import.meta.url);
  url.search = new URLSearchParams(parameters);
  const response = await fetch(url);
  const answer = await response.json().catch(() => ({ error: `${address}: ${response.status}` }));
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

export const fetchRuns = async () => (await ask("runs")).runs;
export const fetchFindings = (run) => ask("findings", { run });
export const fetchLayer = (run, layer) => ask("layer", { run, layer });

/** A map whose `cells` are a Float32Array, row by row. */
export async function fetchMap(run, query) {
  const map = await ask("map", { run, ...query });
  const bytes = Uint8Array.from(atob(map.cells), (character) => character.charCodeAt(0));
  return { ...map, cells: new Float32Array(bytes.buffer) };
}
