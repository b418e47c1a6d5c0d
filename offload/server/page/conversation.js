// A conversation: messages in a tree. An edited or repeated one begins a branch; nothing is lost.
//
// {id, title, is_named, created, updated, leaf, nodes: {id: node}, is_deleted}
// node: {id, parent, role, content, reasoning, calls, born, version, state, usage, timings, error}
// state of an answer: "running" | "done" | "stopped" | "failed"; version counts its changes.

export function uid() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation() {
  const now = Date.now();
  return {
    id: uid(),
    title: "New conversation",
    is_named: false,
    created: now,
    updated: now,
    leaf: null,
    nodes: {},
    is_deleted: false,
  };
}

export function addNode(conversation, parent, fields) {
  const node = {
    id: uid(),
    parent,
    role: "user",
    content: "",
    reasoning: "",
    calls: [],
    born: Date.now(),
    version: 0,
    state: "done",
    ...fields,
  };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  touch(conversation, node);
  if (node.role === "user" && parent === null && !conversation.is_named)
    conversation.title = titleOf(node.content);
  return node;
}

export function touch(conversation, node) {
  conversation.updated = Date.now();
  if (node) node.version += 1;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line || "New conversation";
}

// From the first message to the one shown last.
export function path(conversation) {
  const found = [];
  for (
    let node = conversation.nodes[conversation.leaf];
    node;
    node = conversation.nodes[node.parent]
  )
    found.unshift(node);
  return found;
}

export function childrenOf(conversation, parent) {
  return Object.values(conversation.nodes)
    .filter((node) => node.parent === parent)
    .sort((a, b) => a.born - b.born || (a.id < b.id ? -1 : 1));
}

// The newest end of what follows a message.
export function endOf(conversation, id) {
  for (let next = [{ id }]; next.length; next = childrenOf(conversation, id)) id = next.at(-1).id;
  return id;
}

// Show the branch that goes through this message, at its newest end.
export function choose(conversation, id) {
  conversation.leaf = endOf(conversation, id);
  touch(conversation);
}

// Two tabs may have changed it: all messages of both, each in its later version.
export function merged(stored, mine) {
  if (!stored) return mine;
  const nodes = { ...stored.nodes };
  for (const node of Object.values(mine.nodes)) {
    if (!(nodes[node.id]?.version > node.version)) nodes[node.id] = node;
  }
  const [newer, older] = mine.updated >= stored.updated ? [mine, stored] : [stored, mine];
  const { title, is_named } = older.is_named && !newer.is_named ? older : newer;
  // what another tab has said after it belongs to it
  const leaf = newer.leaf && endOf({ nodes }, newer.leaf);
  return { ...newer, title, is_named, nodes, leaf };
}

// What the server is sent for the answer after `last`.
export function requestMessages(conversation, last, system) {
  const found = [];
  for (let node = last; node; node = conversation.nodes[node.parent])
    if (node.role === "user" || node.content || node.reasoning || node.calls.length)
      found.unshift(asMessage(node)); // not answers that failed before their first word
  return system.trim() ? [{ role: "system", content: system }, ...found] : found;
}

export function asMessage(node) {
  if (node.role === "user") return { role: "user", content: node.content };
  const calls = node.calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return {
    role: "assistant",
    content: node.content,
    ...(node.reasoning && { reasoning_content: node.reasoning }),
    ...(calls.length && { tool_calls: calls }),
  };
}

export function matches(conversation, words) {
  if (!words) return true;
  const text = [
    conversation.title,
    ...Object.values(conversation.nodes).map((node) => node.content),
  ]
    .join("\n")
    .toLowerCase();
  return words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}
