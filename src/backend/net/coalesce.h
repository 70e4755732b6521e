/*
 * Joining of the TCP segments that a back end receives in a row into one frame that the guest takes undone (as GRO of
 * Linux does), so that a guest handles one frame where there were forty.
 *
 * Joined is what segmentation would give back unchanged: same connection, consecutive, no flags but ACK and PSH, same options.
 */
#ifndef BACKEND_NET_COALESCE_H
#define BACKEND_NET_COALESCE_H

#include "backend/net/net.h"

/*
 * Put a frame whose checksums are right at the end of f, or into the last frame of f when it continues that one and `accepts` has
 * the TSO for it. False: no room.
 */
bool net_coalesce(struct net_fifo *f, const uint8_t *data, uint32_t len, unsigned accepts);

#endif
