// Markdown that nobody vouches for, as DOM: no HTML of its own, nothing that runs or loads.

import MarkdownIt from "./vendor/markdown-it/markdown-it.js";
import { tex } from "./vendor/plugin-tex/plugin-tex.js";
import DOMPurify from "./vendor/dompurify/purify.js";
import katex from "./vendor/katex/katex.js";
import hljs from "./vendor/cdn-assets/highlight.js";
import { copy, node } from "./dom.js";

const md = new MarkdownIt({ html: false, linkify: true, typographer: false, breaks: false });
const { escapeHtml } = md.utils;

// KaTeX comes last, from the text in these spans: it sets styles on elements, which the page's
// policy allows, where style attributes in HTML are refused.
md.use(tex, {
  delimiters: "all",
  mathFence: true,
  render: (text, is_display) =>
    is_display
      ? `<div class="tex display">${escapeHtml(text)}</div>\n`
      : `<span class="tex">${escapeHtml(text)}</span>`,
});

// A block of $$ that has no end yet, or never, is text: as a formula it would flicker while it
// grows, and take in all that follows.
const dollars = md.block.ruler.__rules__.find((rule) => rule.name === "math_block_dollar").fn;
md.block.ruler.at(
  "math_block_dollar",
  (state, first, end, is_silent) => {
    const lineAt = (n) =>
      state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]).trimEnd();
    const opening = lineAt(first).slice(2);
    let is_closed = opening.endsWith("$$");
    if (opening.includes("$$") && !is_closed) return false; // a line that begins with a formula
    for (let n = first + 1; n < end && !is_closed && state.tShift[n] >= state.blkIndent; n += 1)
      is_closed = lineAt(n).endsWith("$$");
    return is_closed && dollars(state, first, end, is_silent);
  },
  { alt: ["paragraph", "reference", "blockquote", "list"] },
);

// $$ inside a line: a formula in the line.
md.inline.ruler.before("math_inline_dollar", "math_inline_dollars", (state, is_silent) => {
  const found = /^\$\$([^$]+)\$\$/.exec(state.src.slice(state.pos, state.pos + 2000));
  if (!found) return false;
  if (!is_silent) {
    const token = state.push("math_inline", "math", 0);
    token.markup = "$$";
    token.content = found[1];
  }
  state.pos += found[0].length;
  return true;
});

// A picture would be loaded from anywhere: it becomes a link.
md.renderer.rules.image = (tokens, index) => {
  const token = tokens[index];
  const text = token.content || "picture";
  return `<a href="${escapeHtml(token.attrGet("src") ?? "")}">${escapeHtml(text)}</a>`;
};

for (const cell of ["th_open", "td_open"]) {
  md.renderer.rules[cell] = (tokens, index, options, _, self) => {
    const token = tokens[index];
    const side = /text-align:(\w+)/.exec(token.attrGet("style") ?? "");
    token.attrs = side ? [["class", `to-${side[1]}`]] : null;
    return self.renderToken(tokens, index, options);
  };
}

md.renderer.rules.fence = (tokens, index) => {
  const token = tokens[index];
  const language = /^[\w+#.-]*/.exec(token.info.trim())[0];
  return `<pre data-language="${escapeHtml(language)}"><code>${escapeHtml(token.content)}</code></pre>\n`;
};

const ALLOWED = {
  ALLOWED_TAGS: [
    "a",
    "blockquote",
    "br",
    "code",
    "del",
    "div",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "span",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start", "data-language"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};

// Bring `container` to show this text. Blocks that have not changed keep their elements, and so do
// items of a list: a growing answer costs its last block or item alone, a selection before it stays.
export function showMarkdown(container, text) {
  const environment = {};
  showBlocks(container, split(md.parse(text, environment), text.split("\n"), 0), environment);
}

function showBlocks(container, blocks, environment) {
  blocks.forEach((block, index) => {
    const old = container.children[index];
    if (old?.source === block.source) return;
    if (block.items && old?.list === block.list) {
      showBlocks(old.firstChild, block.items, environment);
      old.source = block.source;
      return;
    }
    const made = block.items ? list(block, environment) : element(block, environment);
    made.source = block.source;
    if (old) old.replaceWith(made);
    else container.append(made);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

// The tokens of each block of this level, with its lines; items: of a list of the outermost level,
// whose kind is `list`.
function split(tokens, lines, level) {
  const blocks = [];
  let first = 0;
  tokens.forEach((token, index) => {
    if (token.level !== level || token.nesting === 1) return;
    const own = tokens.slice(first, index + 1);
    const [open, inner] = own;
    const [begin, end] = open.map ?? [0, lines.length];
    const kind = `${open.type} ${inner?.hidden ? "tight " : ""}`;
    const block = { tokens: own, source: kind + lines.slice(begin, end).join("\n") };
    if (level === 0 && /_list_open$/.test(open.type)) {
      block.items = split(own.slice(1, -1), lines, 1);
      block.list = `${open.tag} ${open.attrGet("start")}`;
    }
    blocks.push(block);
    first = index + 1;
  });
  return blocks;
}

function list(block, environment) {
  const [open] = block.tokens;
  const place = node(open.tag, { start: open.attrGet("start") });
  const made = node("div", { class: "block", dir: "auto" }, place);
  made.list = block.list;
  showBlocks(place, block.items, environment);
  return made;
}

// Of a block, or of an item of a list.
function element(block, environment) {
  const html = md.renderer.render(block.tokens, md.options, environment);
  const found = DOMPurify.sanitize(html, ALLOWED);
  const is_item = block.tokens[0].type === "list_item_open";
  const made = is_item ? found.firstElementChild : node("div", { class: "block", dir: "auto" });
  if (!is_item) made.append(found);
  for (const link of made.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes); // it leads nowhere
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const math of made.querySelectorAll(".tex")) {
    showFormula(math, math.textContent);
  }
  for (const table of made.querySelectorAll("table"))
    table.replaceWith(
      node(
        "div",
        { class: "table", tabindex: 0, role: "region", aria: { label: "Table" } },
        table.cloneNode(true),
      ),
    );
  for (const pre of made.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre));
  return made;
}

function showFormula(place, text) {
  try {
    katex.render(text, place, {
      displayMode: place.classList.contains("display"),
      throwOnError: true,
      trust: false,
      strict: "ignore",
      maxExpand: 200,
      maxSize: 20,
    });
  } catch (error) {
    place.textContent = text;
    place.title = error.message;
    place.classList.add("no-formula");
  }
}

function codeBlock(pre) {
  const code = pre.textContent;
  const language = pre.dataset.language ?? "";
  const body = node("code", {});
  if (hljs.getLanguage(language) && code.length < 50_000)
    body.append(
      DOMPurify.sanitize(hljs.highlight(code, { language, ignoreIllegals: true }).value, ALLOWED),
    );
  else body.textContent = code;
  return node(
    "figure",
    { class: "code", dir: "ltr" },
    node(
      "figcaption",
      {},
      node("span", {}, language || "text"),
      node(
        "button",
        {
          type: "button",
          class: "quiet small",
          icon: "copy",
          onclick: () => copy(code),
          aria: { label: "Copy the code" },
        },
        "Copy",
      ),
    ),
    node(
      "pre",
      { tabindex: 0, role: "region", aria: { label: language ? `Code, ${language}` : "Code" } },
      body,
    ),
  );
}
