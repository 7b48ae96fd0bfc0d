// Inverts pictures in shared memory, as a sidecar in C#.

using System.Buffers;
using System.Text.Json;

var answer = new ArrayBufferWriter<byte>();
using var link = Zeno.Link.Open();
while (link.Receive(out var message)) {
    using var request = JsonDocument.Parse(message);
    if (!request.RootElement.TryGetProperty("slot_name", out var slotName))
        continue; // no call
    var slot = slotName.GetString()!;
    answer.Clear();
    using (var json = new Utf8JsonWriter(answer, new() { SkipValidation = true })) {
        json.WriteStartObject();
        json.WriteString("type", "guest_response");
        json.WritePropertyName("id");
        request.RootElement.GetProperty("id").WriteTo(json);
        Answer(json, slot, request.RootElement);
        json.WriteEndObject();
    }
    link.Send(answer.WrittenSpan);
    if (slot == "plugin_init")
        link.UseRing();
}

// Write the members of an answer that follow its id.
void Answer(Utf8JsonWriter json, string slot, JsonElement request) {
    switch (slot) {
        case "plugin_init":
            Data(json, @"{""name"":""negative-csharp"",""version"":""1.0.0"",
                ""features"":[""shm"",""arena"",""binary""]}".ReplaceLineEndings(" "));
            break;
        case "plugin_register_slots":
            Data(json, @"[{""name"":""negative-csharp.invert"",
                ""description"":""Invert every byte of a picture"",
                ""inputs"":{""picture"":{""type"":""any"",""required"":true,
                ""description"":""Bytes or an array""}}}]".ReplaceLineEndings(" "));
            break;
        case "negative-csharp.invert":
            Invert(json, request.GetProperty("parameters").GetProperty("picture"));
            break;
        default:
            Fail(json, "unknown slot " + slot);
            break;
    }
}

void Data(Utf8JsonWriter json, string data) {
    json.WriteBoolean("success", true);
    json.WritePropertyName("data");
    json.WriteRawValue(data);
}

void Fail(Utf8JsonWriter json, string error) {
    json.WriteBoolean("success", false);
    json.WriteString("error", error);
}

// Answer a picture with every byte inverted, as elements of the same type and in the same shape.
void Invert(Utf8JsonWriter json, JsonElement picture) {
    Span<byte> from;
    if (picture.ValueKind != JsonValueKind.Object || !picture.TryGetProperty("$bytes", out var sent)) {
        Fail(json, "the picture has to be bytes or an array");
        return;
    }
    if (sent.ValueKind == JsonValueKind.String) {
        from = sent.GetBytesFromBase64();
    } else if (!link.Bytes(sent[0].GetInt64(), sent[1].GetInt64(), out from)) {
        Fail(json, "there are no such bytes");
        return;
    }
    var shares = link.NewBytes(from.Length, out var offset, out var to);
    if (!shares)
        to = from; // what was sent is ours until it is answered
    for (var index = 0; index < from.Length; index++)
        to[index] = (byte)~from[index];
    json.WriteBoolean("success", true);
    json.WriteStartObject("data");
    json.WritePropertyName("$bytes");
    if (shares)
        json.WriteRawValue($"[{offset},{to.Length}]");
    else
        json.WriteBase64StringValue(to);
    foreach (var name in new[] { "dtype", "shape" }) {
        if (picture.TryGetProperty(name, out var value)) {
            json.WritePropertyName(name);
            value.WriteTo(json);
        }
    }
    json.WriteEndObject();
    json.WriteBoolean("binary", true);
}
