// Inverts pictures in shared memory, as a sidecar in Go.
package main

import (
	"encoding/json"

	"zeno"
)

type parameters struct {
	Picture json.RawMessage `json:"picture"`
}

func invert(call *zeno.Call, raw json.RawMessage) (any, error) {
	var p parameters
	var about struct {
		Type  string `json:"dtype"`
		Shape []int  `json:"shape"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, err
	}
	picture, err := call.Bytes(p.Picture)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(p.Picture, &about); err != nil {
		return nil, err
	}
	inverted := call.NewBytes(len(picture))
	inverted.Type, inverted.Shape = about.Type, about.Shape
	for i, b := range picture {
		inverted.Data[i] = ^b
	}
	return inverted, nil
}

func main() {
	zeno.Serve("negative-go", "1.0.0", []zeno.Slot{{
		Name:        "negative-go.invert",
		Description: "Invert every byte of a picture",
		Inputs: map[string]any{
			"picture": map[string]any{
				"type": "any", "required": true, "description": "Bytes or an array",
			},
		},
		Run: invert,
	}})
}
