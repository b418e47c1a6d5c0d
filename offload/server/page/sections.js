// The parts of the machine panel, in order. Each has a root, `show(state)`, and some `repaint()`.

import { experts } from "./experts_section.js";
import { memory, off, plan, slots } from "./places_section.js";
import { check, speed, tiers } from "./traffic_section.js";

export const sections = () => [
  speed(),
  tiers(),
  check(),
  experts(),
  slots(),
  memory(),
  plan(),
  off(),
];
