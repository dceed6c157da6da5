// {name}: {inputs} to {outputs}. See {name}.h.
// Target: {target}. Compile with: cc {flags} -shared -fPIC {name}.c -lm -o lib{name}.so
// {said}
#include "{name}.h"

{kernels}
{weights}
{functions}
// One example through all layers.
static void network({example}, float *memory) {{
{places}

{steps}
}}

int {name}_run_in({arguments}, void *memory, size_t bytes) {{
    float *aligned = (float *)(((uintptr_t)memory + 63) / 64 * 64);
    if ({missing}) return {upper}_NO_POINTER;
    if (memory == NULL || bytes < {upper}_MEMORY) return {upper}_NO_MEMORY;
    for (size_t i = 0; i < n; i++) network({moved}, aligned);
    return {upper}_OK;
}}

int {name}_run({arguments}) {{
    {run}
}}

int {name}_abi(void) {{ return {upper}_ABI; }}

size_t {name}_memory(void) {{ return {upper}_MEMORY; }}

const char *{name}_version(void) {{ return "{version}"; }}
