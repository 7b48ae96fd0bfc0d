// Slots that turn titles into names for URLs, as a WASM module from Go's own compiler.
package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unsafe"
)

type request struct {
	SlotName   string `json:"slot_name"`
	Parameters struct {
		Text      string   `json:"text"`
		Separator string   `json:"separator"`
		MaxLength int      `json:"max_length"`
		Slug      string   `json:"slug"`
		Taken     []string `json:"taken"`
	} `json:"parameters"`
}

type object = map[string]any

var slots = []object{
	{
		"name":        "slug.make",
		"description": "Turn a title into a name for a URL",
		"example":     `{"text": "Crème brûlée & Co: 10 tips"}`,
		"inputs": object{
			"text":       object{"type": "string", "required": true, "description": "The title"},
			"separator":  object{"type": "string", "default": "-", "description": "Stands between words"},
			"max_length": object{"type": "int", "default": 60, "description": "Whole words are kept"},
		},
		"outputs": object{"slug": object{"type": "string"}},
	},
	{
		"name":        "slug.unique",
		"description": "Number a slug until it is none of those taken",
		"example":     `{"slug": "tips", "taken": ["tips", "tips-2"]}`,
		"inputs": object{
			"slug":  object{"type": "string", "required": true, "description": "The slug wanted"},
			"taken": object{"type": "list", "required": true, "description": "Slugs in use"},
		},
		"outputs": object{"slug": object{"type": "string"}},
	},
}

var plain = strings.NewReplacer(
	"ä", "ae", "ö", "oe", "ü", "ue", "ß", "ss", "æ", "ae", "ø", "o", "å", "a", "œ", "oe",
	"à", "a", "á", "a", "â", "a", "ã", "a", "ç", "c", "è", "e", "é", "e", "ê", "e", "ë", "e",
	"ì", "i", "í", "i", "î", "i", "ï", "i", "ñ", "n", "ò", "o", "ó", "o", "ô", "o", "õ", "o",
	"ù", "u", "ú", "u", "û", "u", "ý", "y", "ÿ", "y", "š", "s", "ž", "z", "č", "c", "ł", "l",
	"&", " and ", "'", "", "’", "",
)

func makeSlug(text, separator string, maxLength int) string {
	words := strings.FieldsFunc(plain.Replace(strings.ToLower(text)), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	slug := ""
	for _, word := range words {
		longer := slug + separator + word
		if slug == "" {
			longer = word
		}
		if slug != "" && len(longer) > maxLength {
			break
		}
		slug = longer
	}
	return slug
}

func unique(slug string, taken []string) string {
	used := make(map[string]bool, len(taken))
	for _, name := range taken {
		used[name] = true
	}
	name := slug
	for number := 2; used[name]; number++ {
		name = fmt.Sprintf("%s-%d", slug, number)
	}
	return name
}

func run(call request) object {
	p := &call.Parameters
	switch call.SlotName {
	case "slug.make":
		return succeed(object{"slug": makeSlug(p.Text, p.Separator, p.MaxLength)})
	case "slug.unique":
		return succeed(object{"slug": unique(p.Slug, p.Taken)})
	}
	return fail("unknown slot " + call.SlotName)
}

func succeed(data any) object    { return object{"success": true, "data": data} }
func fail(message string) object { return object{"success": false, "error": message} }

// What the host wrote and what it is yet to read must not be collected.
var (
	taken  [][]byte
	answer []byte
)

func give(data any) unsafe.Pointer {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	answer = append(text, 0)
	return unsafe.Pointer(&answer[0])
}

//go:wasmexport alloc
func alloc(size uint32) unsafe.Pointer {
	block := make([]byte, max(size, 1))
	taken = append(taken, block)
	return unsafe.Pointer(&block[0])
}

//go:wasmexport plugin_init
func pluginInit() unsafe.Pointer {
	return give(object{"name": "slug", "version": "1.0.0", "language": "Go"})
}

//go:wasmexport plugin_register_slots
func pluginRegisterSlots() unsafe.Pointer { return give(object{"slots": slots}) }

//go:wasmexport plugin_execute
func pluginExecute(name unsafe.Pointer, nameSize uint32, text unsafe.Pointer, size uint32) unsafe.Pointer {
	defer func() { taken = nil }()
	// Defaults, for hosts that do not fill them in.
	call := request{}
	call.Parameters.Separator, call.Parameters.MaxLength = "-", 60
	if err := json.Unmarshal(unsafe.Slice((*byte)(text), size), &call); err != nil {
		return give(fail(err.Error()))
	}
	return give(run(call))
}

//go:wasmexport plugin_cleanup
func pluginCleanup() { taken, answer = nil, nil }

func main() {}
