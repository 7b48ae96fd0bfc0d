// A guest in C# that hears its host through shared memory, by ext/guests/csharp/ZenoGuest.cs.

using System.Buffers;
using System.Globalization;
using System.Text.Json;

var name = Environment.GetEnvironmentVariable("ZENO_PLUGIN_NAME") ?? "dotnet-ring";
var answer = new ArrayBufferWriter<byte>();
using var link = Zeno.Link.Open();
while (link.Receive(out var message)) {
    using var request = JsonDocument.Parse(message);
    if (!request.RootElement.TryGetProperty("slot_name", out var slotName)) {
        ForgetBuffers(request.RootElement);
        continue; // no call
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

// Let go of the buffers that a message names, if it names any.
void ForgetBuffers(JsonElement message) {
    if (!message.TryGetProperty("buffers", out var ids))
        return;
    foreach (var id in ids.EnumerateArray())
        link.ForgetBuffer(id.GetUInt64());
}

// Write the members of an answer that follow its id.
void Answer(Utf8JsonWriter json, string slot, JsonElement request) {
    JsonElement parameters = default;
    request.TryGetProperty("parameters", out parameters);
    switch (slot.Split('.')[^1]) {
        case "plugin_init":
            Data(json);
            WriteInfo(json);
            break;
        case "plugin_register_slots":
            Data(json);
            WriteSlots(json);
            break;
        case "echo":
            Data(json);
            // As it was written: a number keeps all its digits.
            json.WriteRawValue(parameters.GetProperty("value").GetRawText(), true);
            break;
        case "sleep":
            var seconds = parameters.GetProperty("seconds");
            Thread.Sleep(TimeSpan.FromSeconds(seconds.GetDouble()));
            Data(json);
            seconds.WriteTo(json);
            break;
        case "fail":
            Fail(json, parameters.GetProperty("message").GetString());
            break;
        case "crash":
            Console.Error.WriteLine(".NET guest: crashing as it was told");
            Environment.Exit(3);
            break;
        case "invert":
            if (parameters.TryGetProperty("data", out var data)
                && data.ValueKind == JsonValueKind.Object
                && data.TryGetProperty("$bytes", out var sent))
                Invert(json, sent);
            else
                Fail(json, "these are no bytes");
            break;
        default:
            Fail(json, "unknown slot " + slot);
            break;
    }
}

void Data(Utf8JsonWriter json) {
    json.WriteBoolean("success", true);
    json.WritePropertyName("data");
}

void Fail(Utf8JsonWriter json, string? error) {
    json.WriteBoolean("success", false);
    json.WriteString("error", error);
}

void WriteInfo(Utf8JsonWriter json) {
    json.WriteStartObject();
    json.WriteString("name", name);
    json.WriteString("version", "1.0.0");
    json.WriteString("author", "tests");
    json.WriteStartArray("features");
    if (link.OffersRing)
        json.WriteStringValue("shm");
    if (link.OffersArena)
        json.WriteStringValue("arena");
    if (link.OffersBuffers)
        json.WriteStringValue("buffers");
    json.WriteEndArray();
    json.WriteEndObject();
}

void WriteSlots(Utf8JsonWriter json) {
    json.WriteStartArray();
    foreach (var (slot, inputs) in new[] {
        ("echo", @"{""value"":{""type"":""any""}}"),
        ("sleep", @"{""seconds"":{""type"":""number"",""required"":true}}"),
        ("fail", @"{""message"":{""type"":""string"",""required"":true}}"),
        ("crash", "{}"),
        ("invert", @"{""data"":{""type"":""any"",""required"":true}}"),
    }) {
        json.WriteStartObject();
        json.WriteString("name", name + "." + slot);
        json.WriteString("description", "");
        json.WritePropertyName("inputs");
        json.WriteRawValue(inputs);
        json.WriteEndObject();
    }
    json.WriteEndArray();
}

// Answer bytes with every bit inverted, which were sent as base64 or as their place. Those in a
// buffer are inverted where they are.
void Invert(Utf8JsonWriter json, JsonElement sent) {
    Span<byte> from;
    var isText = sent.ValueKind == JsonValueKind.String;
    var isBuffer = !isText && sent.GetArrayLength() == 3;
    if (isText) {
        from = sent.GetBytesFromBase64();
    } else if (!Find(sent, out from)) {
        Fail(json, "these are no bytes");
        return;
    }
    var shares = !isText && !isBuffer;
    long offset = 0;
    if (!shares || !link.NewBytes(from.Length, out offset, out var to)) {
        shares = false;
        to = from; // what was sent is ours until it is answered
    }
    for (var index = 0; index < from.Length; index++)
        to[index] = (byte)~from[index];
    Data(json);
    json.WriteStartObject();
    json.WritePropertyName("$bytes");
    if (isBuffer)
        sent.WriteTo(json);
    else if (shares)
        json.WriteRawValue(string.Create(CultureInfo.InvariantCulture, $"[{offset},{to.Length}]"));
    else
        json.WriteBase64StringValue(to);
    json.WriteEndObject();
    json.WriteBoolean("binary", true);
}

// Find bytes that were sent as their place.
bool Find(JsonElement place, out Span<byte> bytes) {
    bytes = default;
    if (!place[0].TryGetInt64(out var offset) || !place[1].TryGetInt64(out var nbytes))
        return false;
    if (place.GetArrayLength() == 2)
        return link.Bytes(offset, nbytes, out bytes);
    return place[2].TryGetUInt64(out var id) && link.BufferBytes(id, offset, nbytes, out bytes);
}
