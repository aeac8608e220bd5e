/* A place in the source of a kernel: as a default argument it is the caller's. */
#ifndef NIB_EMULATOR_SITE_H
#define NIB_EMULATOR_SITE_H

namespace nib_emulator
{

struct Site {
    const char *file;
    int line;
    static constexpr Site here(const char *file = __builtin_FILE(), int line = __builtin_LINE())
    {
        return {file, line};
    }
};

} // namespace nib_emulator

#endif
