#!/usr/bin/env node
// The behaviour guest as a sidecar in Node.
'use strict';
const fs = require('fs');

const NAME = process.env.ZENO_PLUGIN_NAME || 'node';
const SLOTS = {
  echo: ['Answer the value as it came', { value: { type: 'any' } }],
  size: ["Count a text's bytes", { text: { type: 'string', required: true } }],
  fail: ['Fail with a message', { message: { type: 'string', required: true } }],
  crash: ['End without an answer', {}],
  sleep: ['Take a while', { seconds: { type: 'number', required: true } }],
  spam: ['Print noise, then answer', { lines: { type: 'int', default: 10 } }],
  count: ['Count the calls so far', {}],
};
let calls = 0;

// Where the value at `at` ends.
function skip(text, at) {
  if (!'"{['.includes(text[at])) return find(/[,}\]\s]/g, text, at);
  let depth = 0;
  do {
    at = depth ? find(/["{}[\]]/g, text, at) : at;
    if (text[at] === '"') {
      for (at = find(/["\\]/g, text, at + 1); text[at] === '\\';) at = find(/["\\]/g, text, at + 2);
    } else {
      depth += '{['.includes(text[at]) ? 1 : -1;
    }
    at++;
  } while (depth);
  return at;
}

// Where the first match from `at` on begins.
function find(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text).index;
}

// A member of an object as it was written: JSON.parse would turn 2**53 + 1 and 1.0 into others.
function rawMember(text, wanted) {
  for (let at = text.indexOf('{') + 1; ; ) {
    const key = find(/["}]/g, text, at);
    if (text[key] === '}') return undefined;
    const keyEnd = skip(text, key);
    const value = find(/[^\s:]/g, text, keyEnd);
    const end = skip(text, value);
    if (JSON.parse(text.slice(key, keyEnd)) === wanted) return text.slice(value, end);
    at = end;
  }
}

function spam(lines) {
  for (let i = 0; i < lines; i++) {
    console.log(`noise ${i} on stdout`);
    console.error(`noise ${i} on stderr`);
  }
  console.log('{"level":"info","message":"JSON, but no message of the protocol"}\n[1,2]');
  return lines;
}

// The slot's data as JSON text; what it throws is the error.
function run(slot, parameters, line) {
  if (slot === 'plugin_init') {
    return JSON.stringify({ name: NAME, version: '1.0.0', author: 'tests', language: 'JavaScript' });
  }
  if (slot === 'plugin_register_slots') {
    const slots = Object.entries(SLOTS).map(([name, [description, inputs]]) => (
      { name: `${NAME}.${name}`, description, inputs }));
    return JSON.stringify({ slots });
  }
  calls++;
  switch (slot.slice(slot.lastIndexOf('.') + 1)) {
    case 'echo':
      return rawMember(rawMember(line, 'parameters'), 'value') ?? 'null';
    case 'size':
      return String(Buffer.byteLength(parameters.text));
    case 'fail':
      throw new Error(parameters.message);
    case 'crash':
      fs.writeSync(2, 'node guest: crashing as it was told\n');
      return process.exit(3);
    case 'sleep':
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, parameters.seconds * 1000);
      return JSON.stringify(parameters.seconds);
    case 'spam':
      return String(spam(parameters.lines ?? 10));
    case 'count':
      return String(calls);
    default:
      throw new Error(`unknown slot ${slot}`);
  }
}

function answer(line) {
  const request = JSON.parse(line);
  const head = `{"type":"guest_response","id":${JSON.stringify(request.id)}`;
  let rest;
  try {
    const data = run(request.slot_name, request.parameters ?? {}, line);
    rest = `,"success":true,"data":${data},"error":null}\n`;
  } catch (error) {
    rest = `,"success":false,"error":${JSON.stringify(error.message)}}\n`;
  }
  process.stdout.write(head + rest);
}

let parts = [];
process.stdin.on('data', (chunk) => {
  for (let newline; (newline = chunk.indexOf(10)) >= 0; chunk = chunk.subarray(newline + 1)) {
    parts.push(chunk.subarray(0, newline));
    const line = Buffer.concat(parts).toString();
    parts = [];
    answer(line);
  }
  if (chunk.length) parts.push(chunk);
});
