// Pages work without this file. It loads parts anew while something runs, and follows a topic.

const LEAST_SECONDS = 1;

async function refresh(part) {
  if (document.hidden) return;
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.getElementById(part.id);
  // Somebody who is reading or choosing there is not disturbed.
  if (fresh === null || part.contains(document.activeElement)) return;
  part.replaceWith(document.adoptNode(fresh));
}

function keepFresh(id, seconds) {
  setInterval(() => {
    const part = document.getElementById(id);
    // A part that could not be loaded anew is shown as outdated until it is.
    if (part !== null && part.dataset.refresh) refresh(part).catch(() => { part.ariaBusy = "true"; });
  }, seconds * 1000);
}

function follow(list) {
  const state = document.getElementById(list.dataset.state);
  const source = new EventSource(list.dataset.follow);
  source.addEventListener("ready", () => { state.textContent = "following"; });
  source.onerror = () => { state.textContent = "interrupted; trying again"; };
  source.onmessage = (event) => {
    for (const values of JSON.parse(event.data)) {
      const row = document.createElement("tr");
      for (const value of values) {
        const cell = document.createElement("td");
        cell.textContent = value; // text only: messages are not HTML
        row.append(cell);
      }
      list.prepend(row);
    }
    while (list.children.length > 200) list.lastElementChild.remove();
  };
}

for (const part of document.querySelectorAll("[data-refresh]")) {
  keepFresh(part.id, Math.max(LEAST_SECONDS, Number(part.dataset.refresh)));
}
for (const list of document.querySelectorAll("[data-follow]")) follow(list);
