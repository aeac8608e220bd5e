/* A device is checked before its first use, and the verdict kept. */
#ifndef NIB_RUNTIME_SELF_CHECK_ONCE_H
#define NIB_RUNTIME_SELF_CHECK_ONCE_H

#include "model/ops.h"

/* Puts those kernels in use that agree with the reference on this device, by the short form of the self-check, which
 * runs once for each card, driver and binary. The verdict is kept in the cache folder (base/file.h) as
 * self-check-KEY.json,
 *
 *   {"device": ops->device, "build": "0.1.0 COMMIT", "plain": ["attention_forward"]}
 *
 * "plain" naming the kernels that were switched off; KEY is a hash of the device's line, which names card and driver,
 * the build, and size and time of change of the backend's file. Deleting the file has the device checked again.
 *
 * A kernel that is switched off is a warning. NIB_ERROR_DEVICE: in some case nothing agrees; that is never kept. */
nib_status nib_self_check_once(nib_ops *ops);

#endif
