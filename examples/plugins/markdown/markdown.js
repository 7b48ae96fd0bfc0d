#!/usr/bin/env node
// Slots about a small subset of Markdown, as a sidecar in Node without packages.
'use strict';

const text = { type: 'string', required: true, description: 'Markdown' };
const SLOTS = [
  {
    name: 'markdown.html',
    description: 'Turn Markdown (headings, lists, code, quotes, emphasis, links) into HTML',
    example: '{"text": "# Hello\\n\\nSome *fine* `code` and a [link](https://example.com)"}',
    inputs: { text },
    outputs: { html: { type: 'string' } },
  },
  {
    name: 'markdown.toc',
    description: 'List the headings of a Markdown text',
    example: '{"text": "# One\\n\\n## Two\\n\\n### Three", "depth": 2}',
    inputs: {
      text,
      depth: { type: 'int', required: false, default: 6, description: 'Leave out deeper ones' },
    },
    outputs: { headings: { type: 'list' } },
  },
];

const ENTITIES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
const escape = (raw) => raw.replace(/[&<>"]/g, (c) => ENTITIES[c]);

function inline(raw) {
  // Code is set aside first: nothing inside it is markup.
  return raw.split(/(`[^`]+`)/).map((part) => {
    if (/^`.+`$/.test(part)) return `<code>${escape(part.slice(1, -1))}</code>`;
    return escape(part)
      .replace(/\[([^\]]+)\]\(((?:https?:\/\/|\/|#|mailto:)[^\s)]*)\)/g, '<a href="$2">$1</a>')
      .replace(/\*\*([^*]+)\*\*/g, '<strong>$1</strong>')
      .replace(/\*([^*]+)\*/g, '<em>$1</em>');
  }).join('');
}

function block(raw) {
  const lines = raw.split('\n');
  const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(raw);
  if (heading) return `<h${heading[1].length}>${inline(heading[2])}</h${heading[1].length}>`;
  if (lines.every((line) => /^[-*]\s/.test(line))) {
    return `<ul>${lines.map((line) => `<li>${inline(line.slice(2))}</li>`).join('')}</ul>`;
  }
  if (lines.every((line) => line.startsWith('>'))) {
    const quoted = lines.map((line) => line.replace(/^>\s?/, '')).join('\n');
    return `<blockquote>${html(quoted)}</blockquote>`;
  }
  return `<p>${inline(raw)}</p>`;
}

function html(source) {
  const fence = /^```.*\n([\s\S]*?)^```\s*$/gm;
  const out = [];
  let done = 0;
  const blocks = (raw) => raw.replace(/^(#{1,6}\s.*)$/gm, '\n$1\n')
    .split(/\n\s*\n/).map((part) => part.trim()).filter(Boolean).map(block);
  for (const found of source.matchAll(fence)) {
    out.push(...blocks(source.slice(done, found.index)));
    out.push(`<pre><code>${escape(found[1])}</code></pre>`);
    done = found.index + found[0].length;
  }
  return out.concat(blocks(source.slice(done))).join('\n');
}

function toc(source, depth) {
  const plain = source.replace(/^```.*\n[\s\S]*?^```\s*$/gm, '');
  return [...plain.matchAll(/^(#{1,6})\s+(.*?)\s*#*$/gm)]
    .map(([, marks, title]) => ({ level: marks.length, title }))
    .filter(({ level }) => level <= depth);
}

const FUNCTIONS = {
  plugin_init: () => ({ name: 'markdown', version: '1.0.0', language: 'JavaScript' }),
  plugin_register_slots: () => SLOTS,
  'markdown.html': (given) => ({ html: html(given.text) }),
  'markdown.toc': (given) => ({ headings: toc(given.text, given.depth ?? 6) }),
};

function answer(request) {
  const slot = request.slot_name;
  if (!Object.hasOwn(FUNCTIONS, slot)) return { success: false, error: `unknown slot ${slot}` };
  try {
    return { success: true, data: FUNCTIONS[slot](request.parameters ?? {}) };
  } catch (error) {
    return { success: false, error: error.message };
  }
}

const input = require('readline').createInterface({ input: process.stdin, crlfDelay: Infinity });
input.on('line', (line) => {
  const request = JSON.parse(line);
  const reply = { type: 'guest_response', id: request.id, ...answer(request) };
  process.stdout.write(`${JSON.stringify(reply)}\n`);
});
