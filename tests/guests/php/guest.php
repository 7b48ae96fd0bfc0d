#!/usr/bin/env php
<?php
// The behaviour guest as a sidecar in PHP. Noise is glued to the answer after it, as PHP's is.
declare(strict_types=1);

ini_set('memory_limit', '1G');
$name = getenv('ZENO_PLUGIN_NAME') ?: 'php';
$slots = [
    'echo' => ['Answer the value as it came', ['value' => ['type' => 'any']]],
    'size' => ["Count a text's bytes", ['text' => ['type' => 'string', 'required' => true]]],
    'fail' => ['Fail with a message', ['message' => ['type' => 'string', 'required' => true]]],
    'crash' => ['End without an answer', []],
    'sleep' => ['Take a while', ['seconds' => ['type' => 'number', 'required' => true]]],
    'spam' => ['Print noise, then answer', ['lines' => ['type' => 'int', 'default' => 10]]],
    'count' => ['Count the calls so far', []],
];
$calls = 0;

/** Where the value at `$at` ends. */
function skip(string $text, int $at): int
{
    $depth = 0;
    do {
        $at += $depth ? strcspn($text, '"{}[]', $at) : 0;
        switch ($text[$at]) {
            case '"':
                for ($at++; $text[$at] !== '"'; $at += 2) {
                    $at += strcspn($text, '"\\', $at);
                    if ($text[$at] === '"') {
                        break;
                    }
                }
                $at++;
                break;
            case '{':
            case '[':
                $depth++;
                $at++;
                break;
            case '}':
            case ']':
                $depth--;
                $at++;
                break;
            default:
                return $at + strcspn($text, ",}] \t\r\n", $at);
        }
    } while ($depth);
    return $at;
}

/** A member of an object as it was written: json_decode would round what a float cannot hold. */
function raw_member(string $text, string $wanted): ?string
{
    $space = " \t\r\n,:{";
    for ($at = strspn($text, $space); $text[$at] === '"'; $at = $end + strspn($text, $space, $end)) {
        $key_end = skip($text, $at);
        $key = json_decode(substr($text, $at, $key_end - $at));
        $at = $key_end + strspn($text, " \t\r\n:", $key_end);
        $end = skip($text, $at);
        if ($key === $wanted) {
            return substr($text, $at, $end - $at);
        }
    }
    return null;
}

/** The slot's data as JSON text; what it throws is the error. */
function run(string $slot, object $parameters, string $line): string
{
    global $name, $slots, $calls;
    if ($slot === 'plugin_init') {
        $info = ['name' => $name, 'version' => '1.0.0', 'author' => 'tests', 'language' => 'PHP'];
        return json_encode($info);
    }
    if ($slot === 'plugin_register_slots') {
        $list = [];
        foreach ($slots as $slot => [$description, $inputs]) {
            $list[] = ['name' => "$name.$slot", 'description' => $description,
                       'inputs' => (object) $inputs];
        }
        return json_encode(['slots' => $list]);
    }
    $calls++;
    switch (substr((string) strrchr($slot, '.'), 1)) {
        case 'echo':
            return raw_member(raw_member($line, 'parameters'), 'value') ?? 'null';
        case 'size':
            return (string) strlen($parameters->text);
        case 'fail':
            throw new DomainException($parameters->message);
        case 'crash':
            fwrite(STDERR, "php guest: crashing as it was told\n");
            exit(3);
        case 'sleep':
            usleep((int) ($parameters->seconds * 1e6));
            return json_encode($parameters->seconds);
        case 'spam':
            $lines = $parameters->lines ?? 10;
            for ($i = 0; $i < $lines; $i++) {
                echo "noise $i on stdout\n";
                fwrite(STDERR, "noise $i on stderr\n");
            }
            echo '{"level":"info","message":"JSON, but no message of the protocol"}', "\n[1,2]\n1";
            return (string) $lines;
        case 'count':
            return (string) $calls;
    }
    throw new DomainException("unknown slot $slot");
}

while (($line = fgets(STDIN)) !== false) {
    $request = json_decode($line, false, 2000);
    $answer = '{"type":"guest_response","id":' . json_encode($request->id);
    try {
        // An empty PHP array and an empty object look alike to many hosts' encoders.
        $parameters = (object) ($request->parameters ?? []);
        $answer .= ',"success":true,"data":' . run($request->slot_name, $parameters, $line) . "}\n";
    } catch (DomainException $error) {
        $answer .= ',"success":false,"error":' . json_encode($error->getMessage()) . "}\n";
    }
    fwrite(STDOUT, $answer);
}
