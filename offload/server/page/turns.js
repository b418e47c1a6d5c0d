// A browser opens six connections to a server, for all its tabs together. Were all of them answers,
// no further page would load and no figure come: so four run, and the next waits here.

const NAMES = [0, 1, 2, 3].map((n) => `stream:${n}`);

// A function that ends the turn; null: `signal` came first.
export function turn(signal) {
  return new Promise((found) => {
    const others = new AbortController();
    let is_mine = false;
    const take = () => {
      if (is_mine || signal.aborted) return null;
      is_mine = true;
      others.abort();
      return new Promise((release) => found(release));
    };
    signal.addEventListener("abort", () => {
      others.abort();
      found(null);
    });
    const asked = NAMES.map((name) => navigator.locks?.request(name, { signal: others.signal }, take));
    // no locks: in a page from another machine without https, or where a browser keeps nothing
    Promise.allSettled(asked).then(() => found(() => {}));
  });
}
