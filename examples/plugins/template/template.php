#!/usr/bin/env php
<?php
// Slots that fill in templates, as a sidecar in PHP.
declare(strict_types=1);

const TEMPLATE = ['type' => 'string', 'required' => true, 'description' => 'Text with {{name}}s'];
const SLOTS = [
    [
        'name' => 'template.render',
        'description' => 'Put values where {{name}} or {{name.member}} stands, escaped for HTML',
        'example' => '{"template": "Dear {{user.name}}, {{note}}",'
            . ' "values": {"user": {"name": "Ada"}, "note": "1 < 2"}}',
        'inputs' => [
            'template' => TEMPLATE,
            'values' => ['type' => 'object', 'required' => true, 'description' => 'By name'],
            'escape' => ['type' => 'bool', 'required' => false, 'default' => true,
                         'description' => 'Whether the result goes into HTML'],
        ],
        'outputs' => ['text' => ['type' => 'string']],
    ],
    [
        'name' => 'template.variables',
        'description' => 'List the names that a template wants',
        'example' => '{"template": "Dear {{user.name}}, {{note}}"}',
        'inputs' => ['template' => TEMPLATE],
        'outputs' => ['names' => ['type' => 'list']],
    ],
];
const PLACE = '/\{\{\s*([\w.]+)\s*\}\}/';

function render(array $given): array
{
    $fill = function (array $found) use ($given): string {
        $value = $given['values'];
        foreach (explode('.', $found[1]) as $key) {
            if (!is_array($value) || !array_key_exists($key, $value)) {
                throw new DomainException("no value for {$found[1]}");
            }
            $value = $value[$key];
        }
        $text = is_string($value) ? $value : json_encode($value, JSON_UNESCAPED_UNICODE);
        return ($given['escape'] ?? true) ? htmlspecialchars($text) : $text;
    };
    return ['text' => preg_replace_callback(PLACE, $fill, $given['template'])];
}

function variables(array $given): array
{
    preg_match_all(PLACE, $given['template'], $found);
    return ['names' => array_values(array_unique($found[1]))];
}

function answer(string $slot, array $given): array
{
    try {
        $data = match ($slot) {
            'plugin_init' => ['name' => 'template', 'version' => '1.0.0', 'language' => 'PHP'],
            'plugin_register_slots' => SLOTS,
            'template.render' => render($given),
            'template.variables' => variables($given),
            default => throw new DomainException("unknown slot $slot"),
        };
        return ['success' => true, 'data' => $data, 'error' => null];
    } catch (DomainException $error) {
        return ['success' => false, 'data' => null, 'error' => $error->getMessage()];
    }
}

while (($line = fgets(STDIN)) !== false) {
    $call = json_decode($line, true);
    $reply = ['type' => 'guest_response', 'id' => $call['id']];
    $reply += answer($call['slot_name'], $call['parameters'] ?? []);
    echo json_encode($reply), "\n";
}
