//! A change of `spec.replicas` alone: spread over the ReplicaSets in proportion to their sizes, so that a rollout under way
//! keeps its mix, and a paused one can be scaled.

use super::revision::{DESIRED, MAX};
use super::{Pass, Set};
use std::cmp::Reverse;

impl Pass<'_, '_> {
    /// Whether the desired number changed since the sizes of the ReplicaSets were decided.
    pub(super) fn is_scaled(&self) -> bool {
        let outdated = |set: &Set| set.number(DESIRED).is_some_and(|desired| desired != i64::from(self.replicas));
        self.sets.iter().any(|set| set.replicas() > 0 && outdated(set))
    }

    /// Brings the ReplicaSets to the desired number.
    pub(super) fn scale(&mut self) {
        let active: Vec<usize> = (0..self.sets.len()).filter(|index| self.sets[*index].replicas() > 0).collect();
        match active[..] {
            [] => {
                // nothing runs: the new one, or else the newest
                let Some(index) = self.new.or(self.sets.len().checked_sub(1)) else { return };
                self.resize(index, self.replicas);
            }
            [only] => {
                self.resize(only, self.replicas);
            }
            _ if self.is_saturated() => {
                let old: Vec<usize> = self.old().filter(|index| self.sets[*index].replicas() > 0).collect();
                for index in old {
                    self.resize(index, 0);
                }
                if let Some(new) = self.new {
                    self.resize(new, self.replicas);
                }
            }
            _ if !self.is_recreate() => self.spread(active),
            _ => {}
        }
    }

    /// Whether the new ReplicaSet does the whole job already.
    fn is_saturated(&self) -> bool {
        let Some(set) = self.new.map(|new| &self.sets[new]) else { return false };
        let decided_for = set.number(DESIRED);
        set.replicas() == self.replicas
            && decided_for == Some(i64::from(self.replicas))
            && set.available() == self.replicas
    }

    fn spread(&mut self, mut active: Vec<usize>) {
        let allowed = if self.replicas > 0 { self.replicas.saturating_add(self.max_surge()) } else { 0 };
        let pods: i32 = active.iter().map(|index| self.sets[*index].replicas()).sum();
        let to_add = allowed - pods;
        // the largest first; among equals the newest gains first and the oldest loses first
        if to_add > 0 {
            active.sort_by_key(|index| Reverse((self.sets[*index].replicas(), *index)));
        } else {
            active.sort_by_key(|index| (Reverse(self.sets[*index].replicas()), *index));
        }
        let mut added = 0;
        let mut sizes = Vec::new();
        for index in &active {
            let share = self.share(*index, to_add, added);
            added += share;
            sizes.push(self.sets[*index].replicas() + share);
        }
        // what rounding left over is the largest one's
        if let Some(largest) = sizes.first_mut() {
            *largest = (*largest + to_add - added).max(0);
        }
        for (index, size) in active.into_iter().zip(sizes) {
            self.resize(index, size);
        }
    }

    /// The part of `to_add` that is one ReplicaSet's, given what others got.
    fn share(&self, index: usize, to_add: i32, added: i32) -> i32 {
        if to_add == 0 || to_add == added {
            return 0;
        }
        let (fraction, left) = (self.fraction(&self.sets[index]), to_add - added);
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    fn fraction(&self, set: &Set) -> i32 {
        let size = i64::from(set.replicas());
        if self.replicas == 0 {
            return -set.replicas();
        }
        let max = i64::from(self.replicas) + i64::from(self.max_surge());
        let before = set.number(MAX).filter(|max| *max > 0);
        let before = before.or_else(|| self.status.replicas.map(i64::from).filter(|replicas| *replicas > 0));
        let Some(before) = before else { return 0 };
        // rounded to the nearest
        let wanted = (2 * size * max + before) / (2 * before);
        i32::try_from(wanted - size).unwrap_or(0)
    }
}
