/* What this program is, for --version and for what it writes. */
#ifndef NIB_VERSION_H
#define NIB_VERSION_H

const char *nib_version(void); /* "0.1.0" */
const char *nib_build(void);   /* both, for a plugin to compare */
const char *nib_commit(void);  /* abbreviated hash of the source; "" if it was no git clone */

#endif
