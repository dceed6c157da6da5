// {name}: {inputs} to {outputs}.
// Written by stn-export, see its docs/native.md.
// {said}
#ifndef {upper}_H
#define {upper}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

enum {{
    {upper}_ABI = {abi},  // another number whenever these functions change
{sizes}
    {upper}_MEMORY = {memory}  // bytes of scratch memory
}};

enum {{ {upper}_OK = 0, {upper}_NO_POINTER = 1, {upper}_NO_MEMORY = 2, {upper}_NO_PART = 3 }};

// Runs n examples, one after the other; arrays have no gaps. May be called by several threads at once: nothing is kept
// between calls and nothing is allocated. Returns {upper}_OK, or {upper}_NO_POINTER where an array is missing.
// {stack}
int {name}_run({arguments});

// The same in the caller's memory, at least {upper}_MEMORY bytes; {upper}_NO_MEMORY where it has less.
int {name}_run_in({arguments}, void *memory, size_t bytes);

// The same shared by `parts` threads of the caller's. Each of them calls this once with its own `part`, from 0 on, and the
// same arrays and memory: parts × {upper}_MEMORY bytes, whose first 128 are zero before the first call. They wait for each
// other inside, so all must be called at the same time, and have returned before the next call.
int {name}_run_part({arguments}, int part, int parts, void *memory, size_t bytes);

// What a built library has for {upper}_ABI and {upper}_MEMORY, and a digest of the network.
int {name}_abi(void);
size_t {name}_memory(void);
const char *{name}_version(void);

#ifdef __cplusplus
}}
#endif

#endif
