// {name}: {inputs} to {outputs}. See {name}.h.
// Target: {target}. Compile with: cc {flags} -shared -fPIC {name}.c -lm -o lib{name}.so
// {said}
// Multiply-adds of an example: {multiply_adds:,}
#include "{name}.h"

{kernels}
{weights}
{functions}
enum {{ GROUP = {group}, BLOCK = {block} }};  // examples that go through the layers together, floats of memory they take

// Up to GROUP examples through all layers. Several threads share what `memory` holds, and each has
// memory of its `own`.
static void network({firsts}, int count, float *memory, float *own, unsigned *meeting, int part, int parts) {{
{steps}
}}

int {name}_run_part({arguments}, int part, int parts, void *memory, size_t bytes) {{
    if ({missing}) return {upper}_NO_POINTER;
    if (parts < 1 || part < 0 || part >= parts) return {upper}_NO_PART;
    if (memory == NULL || bytes / parts < {upper}_MEMORY) return {upper}_NO_MEMORY;
    unsigned *meeting = (unsigned *)(((uintptr_t)memory + 63) / 64 * 64);
    float *all_memory = (float *)meeting + 16, *own = all_memory + (size_t)part * BLOCK;
    const int divided = n % parts == 0 || n >= 4 * (size_t)parts;  // each thread takes examples, else they share each layer
    const size_t end = divided ? n * (part + 1) / parts : n;
    for (size_t i = divided ? n * part / parts : 0; i < end; i += GROUP) {{
        const int count = end - i < GROUP ? (int)(end - i) : GROUP;
        if (divided)
            network({moved}, count, own, own, meeting, 0, 1);
        else
            network({moved}, count, all_memory, own, meeting, part, parts);
    }}
    return {upper}_OK;
}}

int {name}_run_in({arguments}, void *memory, size_t bytes) {{
    return {name}_run_part({passed}, 0, 1, memory, bytes);
}}

int {name}_run({arguments}) {{
    {run}
}}

int {name}_abi(void) {{ return {upper}_ABI; }}

size_t {name}_memory(void) {{ return {upper}_MEMORY; }}

const char *{name}_version(void) {{ return "{version}"; }}
