// SPDX-License-Identifier: Apache-2.0
//! The store against wrong keys, tampering, races, rollbacks and restarts: in a directory and in PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod backup;
mod cases;
mod changes;
mod directory;
mod group;
mod place;
mod postgres;
mod releases;
mod wire;

use place::Place;
use test_postgres::Server;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod in_a_directory {
            use super::{Place, backup, cases, changes, group, releases};

            $(
                #[test]
                fn $name() {
                    $module::$name(&Place::directory());
                }
            )*
        }

        /// One server for all: each case has a database of its own.
        #[test]
        fn the_same_in_postgresql() {
            let Some(server) = Server::start("the store").unwrap() else { return };
            for (name, case) in [$((stringify!($name), $module::$name as fn(&Place<'_>))),*] {
                let started = std::time::Instant::now();
                case(&Place::postgres(&server));
                eprintln!("{name} {:?}", started.elapsed());
            }
            for (name, case) in postgres::CASES {
                let started = std::time::Instant::now();
                case(&server);
                eprintln!("{name} {:?}", started.elapsed());
            }
            backup::backups_move_stores(&server);
        }
    };
}

cases! {
    cases::keys_come_back_by_their_whole_name_and_newest_version,
    cases::no_key_lies_in_the_files_in_clear,
    cases::a_wrong_or_exposed_key_wrapping_key_opens_nothing,
    cases::rows_that_were_moved_or_changed_do_not_open,
    cases::of_racing_redemptions_one_wins,
    cases::a_challenge_is_redeemed_once_for_ever,
    cases::audit_entries_come_with_proofs_and_survive,
    cases::administration_reads_while_the_service_appends,
    cases::entries_of_another_form_are_refused,
    cases::cosignatures_join_the_current_checkpoint_only,
    cases::revocations_and_policies_last,
    cases::owners_command_in_order_and_for_good,
    group::entries_that_come_together_have_proofs_of_their_own,
    group::redemptions_that_come_together_stand_or_fall_alone,
    group::marks_move_with_changes_and_not_with_redemptions,
    group::a_change_after_a_failover_is_not_taken_for_a_lost_one,
    group::sums_of_refusals_are_entries,
    changes::changes_of_the_operator_are_entered_before_what_follows_them,
    changes::tables_of_a_newer_program_stop_an_older_one,
    changes::keys_are_released_behind_the_changes_that_were_seen,
    changes::commands_of_owners_are_counted_as_changes,
    changes::many_changes_stand_before_what_they_decided,
    changes::only_entries_of_counted_changes_are_taken_from_the_queue,
    releases::verified_releases_are_kept_by_digest_and_revoked_for_good,
    backup::backups_are_whole_and_restored_in_a_directory,
    backup::archives_that_are_old_or_changed_are_refused,
    backup::archives_that_were_made_up_are_refused,
    backup::backups_are_made_while_the_service_appends,
    backup::everything_is_wrapped_anew_by_another_key,
}
