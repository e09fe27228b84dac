// What Wine before 9 lacks, by what it has: random bytes for Rust's standard library.
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID bytes, ULONG n);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T n) {
    return SystemFunction036(bytes, (ULONG)n);
}
