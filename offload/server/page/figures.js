// Numbers as people read them.

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"];

export function bytes(n) {
  let unit = 0;
  while (n >= 999.5 && unit < UNITS.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${digits(n)} ${UNITS[unit]}`;
}

export const digits = (n) =>
  (n >= 100 || n === 0 ? Math.round(n) : Number(n.toPrecision(n >= 10 ? 3 : 2))).toLocaleString(
    "en",
  );

export const count = (n) => Math.round(n).toLocaleString("en");

export const percent = (share) =>
  `${share > 0 && share < 0.0095 ? "<1" : Math.round(100 * share)} %`;

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

export const rate = (n) => (n >= 100 || n === 0 ? count(n) : n.toFixed(n >= 10 ? 1 : 2));

export function duration(seconds) {
  if (seconds > 0 && seconds < 0.0995) return `${digits(1000 * seconds)} ms`;
  if (seconds < 60) return `${digits(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function day(time) {
  const then = new Date(time);
  const days = Math.floor(
    (new Date().setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 864e5,
  );
  if (days < 1) return then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (days < 2) return "Yesterday";
  return then.toLocaleDateString([], {
    day: "numeric",
    month: "short",
    year: days > 300 ? "numeric" : undefined,
  });
}
