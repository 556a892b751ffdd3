// Package e2e holds tests of a whole broker with real clients over real
// sockets: what unmodified clients of others write and read, the
// administrative surface, replay from object storage, object storage that
// fails, restarts under load, and many partitions.
//
// VARVE_LONG=1 runs the long forms. The figures of the runs are logged (-v).
package e2e
