// Short texts that the browser keeps, where it keeps any: it may refuse all, or be full.

// `area`: "localStorage" | "sessionStorage". null: nothing is there.
export function recall(area, key) {
  try {
    return window[area].getItem(key);
  } catch {
    return null;
  }
}

export function keep(area, key, text) {
  try {
    window[area].setItem(key, text);
  } catch {
    // it holds until the page closes
  }
}
