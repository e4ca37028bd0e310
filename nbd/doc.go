// Package nbd serves exports by the NBD protocol (fixed newstyle).
package nbd
