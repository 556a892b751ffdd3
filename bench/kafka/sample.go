package main

import (
	"fmt"
	"math"

	"github.com/varve/varve/bench/load"
)

// sample is what one side measured: a number for each metric that applies.
type sample map[string]float64

// metric is how a number is shown. Less says that less of it is better.
type metric struct {
	Name   string
	Format string
	Less   bool
	Plain  bool // neither is better: it describes the load, and no ratio is formed
}

// The metrics, in the order of the report's tables.
const (
	mMBs        = "MB/s"
	mRecords    = "records/s"
	mConsumed   = "consumed MB/s"
	mOfRate     = "of the intended rate"
	mAck50      = "ack p50 ms"
	mAck99      = "ack p99 ms"
	mEnd50      = "end to end p50 ms"
	mEnd99      = "end to end p99 ms"
	mEnd999     = "end to end p99.9 ms"
	mEnd9999    = "end to end p99.99 ms"
	mCPU        = "broker CPU s/GB"
	mFetchCPU   = "fetching alone, CPU s/GB"
	mCores      = "broker cores"
	mRSS        = "peak RSS MB"
	mDisk       = "bytes to the disk per byte produced"
	mPerRequest = "bytes per request"
	mPerBatch   = "records per batch"
	mFetchSize  = "bytes per fetch"
	mClient     = "load's own cores"
	mOthers     = "cores of others"
	mErrors     = "errors"
	mBeside     = "etcd and S3 server, CPU s/GB"

	mGapBefore     = "before it: longest without a write, ms"
	mGap50         = "without a write p50 ms"
	mGap99         = "without a write p99 ms"
	mGapMax        = "without a write, the longest, ms"
	mGapOthers     = "led by others: without a write, the longest, ms"
	mInSync        = "all replicas in sync after it, s"
	mMoved         = "moved after s"
	mCopied        = "MB read by the new broker"
	mStored        = "MB stored"
	mMoveSmall     = "100 MB: moved after s"
	mMoveSmallMax  = "100 MB: the longest, s"
	mMoveMiddle    = "1 GB: moved after s"
	mMoveMiddleMax = "1 GB: the longest, s"
	mMoveLarge     = "10 GB: moved after s"
	mMoveLargeMax  = "10 GB: the longest, s"
	mLargeOfSmall  = "10 GB / 100 MB"

	mTxns      = "transactions/s"
	mThrough   = "records/s through"
	mCommit50  = "transaction's commit p50 ms"
	mCommit99  = "transaction's commit p99 ms"
	mTxnCPU    = "broker CPU ms per transaction"
	mPerTxn    = "records per transaction"
	mAborted   = "aborted transactions"
	mOffsets   = "offset commits/s"
	mOffsetCPU = "broker CPU ms per offset commit"
	mAllStart  = "all own their share after the start, s"
	mAllLeave  = "after one has left, s"
	mAllJoin   = "after one has come, s"
	mReqStart  = "requests about the group, start"
	mReqLeave  = "requests, one has left"
	mReqJoin   = "requests, one has come"

	mIdle      = "idle CPU %"
	mStart     = "start s"
	mRestart   = "restart after kill -9 s"
	mConnRSS   = "KiB per connection"
	mConnCPU   = "CPU % while they idle"
	mConnOpen  = "connections"
	mChurn     = "connections/s"
	mChurn50   = "until served p50 ms"
	mChurn99   = "until served p99 ms"
	mChurnCPU  = "broker CPU ms per connection"
	mReplay    = "replay MB/s"
	mRawGET    = "raw parallel GET MB/s"
	mOfRaw     = "of raw parallel GET"
	mFromStore = "share read from the object store"
	mLogGB     = "on disk GB"
)

var metrics = []metric{
	{Name: mMBs, Format: "%.1f"}, {Name: mRecords, Format: "%.0f"}, {Name: mConsumed, Format: "%.1f"}, {Name: mOfRate, Format: "%.3f", Plain: true},
	{Name: mTxns, Format: "%.1f"}, {Name: mThrough, Format: "%.0f"}, {Name: mCommit50, Format: "%.2f", Less: true}, {Name: mCommit99, Format: "%.2f", Less: true},
	{Name: mTxnCPU, Format: "%.3f", Less: true}, {Name: mPerTxn, Format: "%.1f", Plain: true}, {Name: mAborted, Format: "%.0f", Plain: true},
	{Name: mOffsets, Format: "%.0f"}, {Name: mOffsetCPU, Format: "%.3f", Less: true},
	{Name: mAllStart, Format: "%.2f", Less: true}, {Name: mAllLeave, Format: "%.2f", Less: true}, {Name: mAllJoin, Format: "%.2f", Less: true},
	{Name: mReqStart, Format: "%.0f", Less: true}, {Name: mReqLeave, Format: "%.0f", Less: true}, {Name: mReqJoin, Format: "%.0f", Less: true},
	{Name: mAck50, Format: "%.2f", Less: true}, {Name: mAck99, Format: "%.2f", Less: true},
	{Name: mEnd50, Format: "%.2f", Less: true}, {Name: mEnd99, Format: "%.2f", Less: true}, {Name: mEnd999, Format: "%.2f", Less: true}, {Name: mEnd9999, Format: "%.2f", Less: true},
	{Name: mCPU, Format: "%.2f", Less: true}, {Name: mBeside, Format: "%.2f", Plain: true}, {Name: mFetchCPU, Format: "%.2f", Less: true}, {Name: mCores, Format: "%.2f", Plain: true},
	{Name: mRSS, Format: "%.0f", Less: true}, {Name: mDisk, Format: "%.2f", Plain: true},
	{Name: mReplay, Format: "%.0f"}, {Name: mRawGET, Format: "%.0f", Plain: true}, {Name: mOfRaw, Format: "%.2f"}, {Name: mFromStore, Format: "%.2f", Plain: true},
	{Name: mIdle, Format: "%.2f", Less: true}, {Name: mStart, Format: "%.2f", Less: true}, {Name: mRestart, Format: "%.2f", Less: true}, {Name: mLogGB, Format: "%.2f", Plain: true},
	{Name: mGapBefore, Format: "%.0f", Plain: true}, {Name: mGap50, Format: "%.0f", Less: true}, {Name: mGap99, Format: "%.0f", Less: true},
	{Name: mGapMax, Format: "%.0f", Less: true}, {Name: mGapOthers, Format: "%.0f", Less: true}, {Name: mInSync, Format: "%.2f", Less: true},
	{Name: mMoved, Format: "%.2f", Less: true}, {Name: mCopied, Format: "%.1f", Less: true}, {Name: mStored, Format: "%.0f", Plain: true},
	{Name: mMoveSmall, Format: "%.3f", Less: true}, {Name: mMoveSmallMax, Format: "%.3f", Less: true},
	{Name: mMoveMiddle, Format: "%.3f", Less: true}, {Name: mMoveMiddleMax, Format: "%.3f", Less: true},
	{Name: mMoveLarge, Format: "%.3f", Less: true}, {Name: mMoveLargeMax, Format: "%.3f", Less: true}, {Name: mLargeOfSmall, Format: "%.2f", Less: true},
	{Name: mConnOpen, Format: "%.0f", Plain: true}, {Name: mConnRSS, Format: "%.1f", Less: true}, {Name: mConnCPU, Format: "%.2f", Less: true},
	{Name: mChurn, Format: "%.1f", Plain: true}, {Name: mChurn50, Format: "%.2f", Less: true}, {Name: mChurn99, Format: "%.2f", Less: true}, {Name: mChurnCPU, Format: "%.3f", Less: true},
	{Name: mPerRequest, Format: "%.0f", Plain: true}, {Name: mPerBatch, Format: "%.1f", Plain: true}, {Name: mFetchSize, Format: "%.0f", Plain: true},
	{Name: mClient, Format: "%.2f", Plain: true}, {Name: mOthers, Format: "%.2f", Plain: true}, {Name: mErrors, Format: "%.0f", Plain: true},
}

func metricOf(name string) metric {
	for _, m := range metrics {
		if m.Name == name {
			return m
		}
	}
	panic(fmt.Sprintf("no metric %q", name))
}

// sampleOf is what a load's result says.
func sampleOf(res *load.Result) sample {
	s := sample{mErrors: float64(res.Errors), mClient: res.Client.Cores}
	if p := res.Produced; p != nil {
		s[mMBs], s[mRecords] = p.MBPerSecond, p.RecordsPerSecond
		s[mPerRequest], s[mPerBatch] = p.BytesPerRequest, p.RecordsPerBatch
		if p.Intended > 0 {
			s[mOfRate] = p.RecordsPerSecond / p.Intended
		}
	}
	if c := res.Consumed; c != nil {
		s[mConsumed], s[mFetchSize] = c.MBPerSecond, c.BytesPerRequest
	}
	if l := res.Ack; l != nil {
		s[mAck50], s[mAck99] = l.P50, l.P99
	}
	if l := res.EndToEnd; l != nil {
		s[mEnd50], s[mEnd99], s[mEnd999], s[mEnd9999] = l.P50, l.P99, l.P999, l.P9999
	}
	if u := res.Broker; u != nil {
		s[mCPU], s[mCores], s[mRSS] = u.SecondsPerGB, u.Cores, float64(u.PeakRSS)/1e6
	}
	if t := res.Transactions; t != nil {
		// What counts is what comes out; what is read is a part of the same broker's work.
		delete(s, mMBs)
		delete(s, mRecords)
		delete(s, mConsumed)
		delete(s, mCPU)
		delete(s, mAck50)
		delete(s, mAck99)
		s[mTxns], s[mPerTxn], s[mTxnCPU] = t.PerSecond, t.PerCommit, t.CPUPerTxn
		if t.Aborted > 0 {
			s[mAborted] = float64(t.Aborted)
		}
		if c := res.Consumed; c != nil {
			s[mThrough] = c.RecordsPerSecond
		}
		if l := res.Commit; l != nil {
			s[mCommit50], s[mCommit99] = l.P50, l.P99
		}
	}
	if n := res.CommitsPerSecond; n > 0 {
		s[mOffsets] = n
		if u := res.Broker; u != nil {
			delete(s, mCPU)
			s[mOffsetCPU] = 1000 * u.CPUSeconds / (n * res.Seconds)
		}
	}
	for k, v := range s {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			delete(s, k)
		}
	}
	return s
}
