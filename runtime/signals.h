/* Requests to stop: the first SIGINT, SIGTERM or SIGUSR1 asks for a stop at the next step boundary; a second SIGINT or
 * SIGTERM ends the program at once. What nobody reads any more is lost, and ends nothing. */
#ifndef NIB_SIGNALS_H
#define NIB_SIGNALS_H

#include <stdbool.h>

void nib_signals_install(void);
/* The end is settled: a SIGTERM, which a launcher sends to all once the first rank has ended, changes nothing any more.
 */
void nib_signals_settled(void);
bool nib_signals_stop_requested(void);
int nib_signals_last(void); /* number of the signal that asked, 0: none */

#endif
