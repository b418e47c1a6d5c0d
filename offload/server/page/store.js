// Conversations in the browser's database, shared by its tabs.

import { createStore, get, update, values } from "./vendor/idb-keyval/idb-keyval.js";
import { merged } from "./conversation.js";

const database = createStore("kimi-offload", "conversations");
const channel = new BroadcastChannel("kimi-offload");
const memory = new Map(); // where the browser has no database

// Whether it can be shown: what another program, or a crash, has left there may be anything.
const isWhole = (one) =>
  typeof one?.title === "string" &&
  typeof one.nodes === "object" &&
  Object.values(one.nodes ?? { none: null }).every(
    (node) => typeof node?.content === "string" && Array.isArray(node.calls),
  );

export class Store {
  // changed(id): another tab has changed one. is_kept: whether they outlive the page.
  constructor(changed) {
    this.is_kept = true;
    channel.onmessage = (event) => changed(event.data);
  }

  async all() {
    try {
      return (await values(database)).filter((one) => isWhole(one) && !one.is_deleted);
    } catch {
      this.is_kept = false;
      return [...memory.values()].filter((one) => !one.is_deleted);
    }
  }

  async load(id) {
    const found = this.is_kept ? await get(id, database) : memory.get(id);
    return isWhole(found) ? found : undefined;
  }

  // Joins what another tab has written since; gives the sum.
  async save(conversation) {
    let whole = structuredClone(conversation);
    const mine = whole;
    if (this.is_kept) await update(mine.id, (stored) => (whole = merged(stored, mine)), database);
    else memory.set(mine.id, mine);
    channel.postMessage(mine.id);
    return whole;
  }
}

// Whether a tab is still at this answer: its lock goes with it, however the tab ends.
export function holdAnswer(id) {
  if (!navigator.locks) return () => {};
  let release = () => {};
  navigator.locks
    .request(`answer:${id}`, () => new Promise((done) => (release = done)))
    .catch(() => {}); // where a browser keeps nothing, it has no locks either
  return () => release();
}

export async function isAnswering(id) {
  if (!navigator.locks) return false;
  const { held, pending } = await navigator.locks.query().catch(() => ({ held: [], pending: [] }));
  return [...held, ...pending].some((lock) => lock.name === `answer:${id}`);
}
