// Slots about digests, as a sidecar in Go. Every call has a goroutine of its own.
package main

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc32"
	"os"
)

type request struct {
	ID         string `json:"id"`
	SlotName   string `json:"slot_name"`
	Parameters struct {
		Text      string `json:"text"`
		Key       string `json:"key"`
		Algorithm string `json:"algorithm"`
		Digest    string `json:"digest"`
	} `json:"parameters"`
}

type response struct {
	Type    string  `json:"type"`
	ID      string  `json:"id"`
	Success bool    `json:"success"`
	Data    any     `json:"data"`
	Error   *string `json:"error"`
}

type object = map[string]any

var algorithms = map[string]func() hash.Hash{
	"crc32":  func() hash.Hash { return crc32.NewIEEE() },
	"sha1":   sha1.New,
	"sha256": sha256.New,
	"sha512": sha512.New,
}

func slots() []object {
	text := object{"type": "string", "required": true, "description": "What to digest"}
	key := object{"type": "string", "required": true, "description": "The secret"}
	algorithm := object{"type": "string", "required": false, "default": "sha256",
		"description": "crc32, sha1, sha256 or sha512"}
	return []object{
		{
			"name":        "digest.hash",
			"description": "Digest a text; the answer is in hexadecimal",
			"example":     `{"text": "hello", "algorithm": "sha256"}`,
			"inputs":      object{"text": text, "algorithm": algorithm},
			"outputs":     object{"digest": object{"type": "string"}},
		},
		{
			"name":        "digest.sign",
			"description": "Digest a text with a secret key (HMAC)",
			"example":     `{"text": "hello", "key": "secret"}`,
			"inputs":      object{"text": text, "key": key, "algorithm": algorithm},
			"outputs":     object{"digest": object{"type": "string"}},
		},
		{
			"name":        "digest.verify",
			"description": "Tell whether a digest was made of a text with a key, in constant time",
			"example":     `{"text": "hello", "key": "secret", "digest": "00"}`,
			"inputs": object{"text": text, "key": key, "algorithm": algorithm,
				"digest": object{"type": "string", "required": true, "description": "Hexadecimal"}},
			"outputs": object{"valid": object{"type": "bool"}},
		},
	}
}

func run(call *request) (any, error) {
	p := &call.Parameters
	switch call.SlotName {
	case "plugin_init":
		return object{"name": "digest", "version": "1.0.0", "language": "Go"}, nil
	case "plugin_register_slots":
		return slots(), nil
	case "digest.hash", "digest.sign", "digest.verify":
	default:
		return nil, fmt.Errorf("unknown slot %s", call.SlotName)
	}
	if p.Algorithm == "" {
		p.Algorithm = "sha256"
	}
	algorithm, known := algorithms[p.Algorithm]
	if !known || (p.Algorithm == "crc32" && call.SlotName != "digest.hash") {
		return nil, fmt.Errorf("unknown algorithm %q", p.Algorithm)
	}
	if call.SlotName == "digest.hash" {
		sum := algorithm()
		sum.Write([]byte(p.Text))
		return object{"digest": hex.EncodeToString(sum.Sum(nil))}, nil
	}
	sum := hmac.New(algorithm, []byte(p.Key))
	sum.Write([]byte(p.Text))
	if call.SlotName == "digest.sign" {
		return object{"digest": hex.EncodeToString(sum.Sum(nil))}, nil
	}
	given, err := hex.DecodeString(p.Digest)
	return object{"valid": err == nil && hmac.Equal(given, sum.Sum(nil))}, nil
}

func answer(call *request) {
	reply := response{Type: "guest_response", ID: call.ID}
	data, err := run(call)
	if err != nil {
		message := err.Error()
		reply.Error = &message
	} else {
		reply.Success, reply.Data = true, data
	}
	line, err := json.Marshal(reply)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n')) // one write: lines of other goroutines stay whole
}

func main() {
	// Not a bufio.Scanner, which gives up on lines above 64 KiB.
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			return
		}
		call := new(request)
		if err := json.Unmarshal(line, call); err != nil {
			fmt.Fprintln(os.Stderr, "digest:", err)
			continue
		}
		go answer(call)
	}
}
