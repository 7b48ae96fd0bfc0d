// Inverts pictures in shared memory, as a sidecar in C#.

using System.Buffers;
using System.Text.Json;

var answer = new ArrayBufferWriter<byte>();
using var link = Zeno.Link.Open();
while (link.Receive(out var message)) {
    using var request = JsonDocument.Parse(message);
    if (!request.RootElement.TryGetProperty("slot_name", out var slotName)) {
        // No call, but perhaps buffers that, as the host says, nobody has any more.
        if (request.RootElement.TryGetProperty("buffers", out var gone)) {
            foreach (var id in gone.EnumerateArray())
                link.ForgetBuffer(id.GetUInt64());
        }
        continue;
    }
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
                ""features"":[""shm"",""arena"",""binary"",""buffers""]}".ReplaceLineEndings(" "));
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
// One in a buffer is inverted where it is.
void Invert(Utf8JsonWriter json, JsonElement picture) {
    Span<byte> from;
    if (picture.ValueKind != JsonValueKind.Object || !picture.TryGetProperty("$bytes", out var sent)) {
        Fail(json, "the picture has to be bytes or an array");
        return;
    }
    var isText = sent.ValueKind == JsonValueKind.String;
    var isBuffer = !isText && sent.GetArrayLength() == 3;
    if (isText) {
        from = sent.GetBytesFromBase64();
    } else if (!Find(sent, out from)) {
        Fail(json, "there are no such bytes");
        return;
    }
    long offset = 0;
    Span<byte> to = default;
    var shares = !isBuffer && link.NewBytes(from.Length, out offset, out to);
    if (!shares)
        to = from; // what was sent is ours until it is answered
    for (var index = 0; index < from.Length; index++)
        to[index] = (byte)~from[index];
    json.WriteBoolean("success", true);
    json.WriteStartObject("data");
    json.WritePropertyName("$bytes");
    if (isBuffer)
        sent.WriteTo(json);
    else if (shares)
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

// Find bytes that were sent as their place, in the arena or in a buffer.
bool Find(JsonElement place, out Span<byte> bytes) {
    var (offset, nbytes) = (place[0].GetInt64(), place[1].GetInt64());
    return place.GetArrayLength() == 2
        ? link.Bytes(offset, nbytes, out bytes)
        : link.BufferBytes(place[2].GetUInt64(), offset, nbytes, out bytes);
}
