/* Numbers of the seekable format that reader and writer share. */
#ifndef NIB_ZSTD_FRAMES_INTERNAL_H
#define NIB_ZSTD_FRAMES_INTERNAL_H

#define TABLE_MAGIC   0x184D2A5Eu
#define FOOTER_MAGIC  0x8F92EAB1u
#define CHECKSUM_FLAG 0x80
enum { ENTRY_BYTES = 12, FOOTER_BYTES = 9, TABLE_HEADER_BYTES = 8, MAX_FRAMES = 0x8000000 };

#endif
