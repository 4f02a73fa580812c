// SPDX-License-Identifier: Apache-2.0
//! One difference at a time: its cause is named, and no other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use calculator::load_options;
use explain::{Basis, EventVerdict, Explanation, Knowledge, LogStanding, RegisterLog, ShapeSource, Verdict};
use types::{QemuVersion, RegisterName, Sha384Digest};
use world::{Guest, Question, all_acpi, boot, digest, image, shape};

const OLD: QemuVersion = QemuVersion { major: 7, minor: 2 };

fn detail(explanation: &Explanation) -> &str {
    &explanation.findings[0].detail
}

#[test]
fn a_guest_as_released_matches_with_and_without_a_log() {
    let guest = Guest::new(&image(), &shape(|_| ()));
    for question in [Question::new(&guest), Question::without_log(&guest)] {
        let explanation = question.ask();
        assert_eq!(question.codes(), [""; 0]);
        assert!(explanation.matches);
        assert!(explanation.registers.iter().all(|register| register.verdict == Verdict::Match));
        assert_eq!(explanation.nearest, None);
    }
    let explanation = Question::new(&guest).ask();
    assert_eq!(explanation.log, LogStanding::Agrees);
    let rtmr_0 = explanation.register(RegisterName::Rtmr0).unwrap();
    assert_eq!(rtmr_0.events.len(), 13);
    assert!(rtmr_0.events.iter().all(|event| event.verdict == EventVerdict::Match));
}

#[test]
fn another_command_line_is_named_by_its_words() {
    let line = image().command_line;
    for (changed, words) in [
        (format!("{line} debug"), "added: debug"),
        (format!("console=ttyS0 {line}"), "added: console=ttyS0"),
        (line.replace(" quiet", ""), "removed: quiet"),
        (line.replace("=tdx", "=simulated"), "changed: chrysalis.tee=tdx to chrysalis.tee=simulated"),
        (line.replace("panic=-1 quiet", "quiet panic=-1"), "the same words in another order"),
    ] {
        let mut other = image();
        other.command_line = changed;
        let guest = Guest::new(&other, &shape(|_| ()));
        for question in [Question::new(&guest), Question::without_log(&guest)] {
            let explanation = question.ask();
            assert_eq!(question.codes(), ["command_line_changed"], "{words}");
            assert!(detail(&explanation).contains(words), "{}", detail(&explanation));
            assert_eq!(explanation.findings[0].basis, Basis::Digest);
        }
    }
}

#[test]
fn an_unknown_command_line_is_no_guess_until_it_is_named() {
    let mut other = image();
    other.command_line.push_str(" a.word=nobody-knows");
    let guest = Guest::new(&other, &shape(|_| ()));
    assert_eq!(Question::new(&guest).codes(), ["command_line_differs"]);
    assert_eq!(Question::without_log(&guest).codes(), ["cause_unknown"]);
    let command_lines = ["something else".to_owned(), other.command_line.clone()];
    for mut question in [Question::new(&guest), Question::without_log(&guest)] {
        question.knowledge = Knowledge { command_lines: &command_lines, ..Knowledge::default() };
        assert_eq!(question.codes(), ["command_line_changed"]);
        assert!(detail(&question.ask()).ends_with("added: a.word=nobody-knows"));
    }
}

#[test]
fn a_command_line_in_the_log_counts_only_if_its_digest_covers_it() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let options = load_options(&format!("{} a.word=x", image().command_line), calculator::InitrdWord::After).unwrap();
    let event = guest.event(6, 0);
    event.data = options.clone();
    event.digest = Sha384Digest::of(&options);
    guest.measure();
    // Data without a tag is no LoadOptions event to the table, but there is nothing else it could stand for.
    let explanation = Question::new(&guest).ask();
    assert!(!explanation.matches);
    let mut lying = guest.clone();
    lying.event(6, 0).digest = digest("something else");
    lying.measure();
    assert!(!Question::new(&lying).codes().contains(&"command_line_changed"));
}

#[test]
fn where_the_firmware_puts_the_initrd_word_is_seen() {
    let line = image().command_line;
    for (options, text) in
        [(format!("initrd=initrd {line}\0"), "other end"), (format!("{line}\0"), "without initrd=initrd")]
    {
        let mut guest = Guest::new(&image(), &shape(|_| ()));
        guest.event(6, 0).digest =
            Sha384Digest::of(&options.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
        guest.measure();
        for question in [Question::new(&guest), Question::without_log(&guest)] {
            assert_eq!(question.codes(), ["firmware_initrd_word"]);
            assert!(detail(&question.ask()).contains(text));
        }
    }
}

#[test]
fn another_initrd_is_named() {
    let mut other = image();
    other.initrd = digest("another initrd");
    let guest = Guest::new(&other, &shape(|_| ()));
    assert_eq!(Question::new(&guest).codes(), ["initrd_differs"]);
    assert_eq!(Question::without_log(&guest).codes(), ["cause_unknown"], "it cannot be told from a command line");
    let images = [("1.2".to_owned(), &other)];
    for mut question in [Question::new(&guest), Question::without_log(&guest)] {
        question.knowledge = Knowledge { images: &images, ..Knowledge::default() };
        assert_eq!(question.codes(), ["initrd_of_other_release"]);
        assert!(detail(&question.ask()).contains("release 1.2"));
    }
}

#[test]
fn a_missing_initrd_is_named() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.events.retain(|event| event.digest != image().initrd);
    guest.measure();
    for question in [Question::new(&guest), Question::without_log(&guest)] {
        assert_eq!(question.codes(), ["event_missing"]);
        assert!(detail(&question.ask()).contains("initrd"));
    }
}

#[test]
fn another_kernel_is_named() {
    let mut other = image();
    other.kernel.unpatched = digest("another kernel");
    let guest = Guest::new(&other, &shape(|_| ()));
    assert_eq!(Question::new(&guest).codes(), ["kernel_differs"]);
    assert_eq!(Question::without_log(&guest).codes(), ["cause_unknown"]);
    let images = [("1.2".to_owned(), &other)];
    for mut question in [Question::new(&guest), Question::without_log(&guest)] {
        question.knowledge = Knowledge { images: &images, ..Knowledge::default() };
        assert_eq!(question.codes(), ["kernel_of_other_release"]);
    }
}

#[test]
fn a_kernel_that_another_qemu_patched_or_left_is_the_same_kernel() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.event(0x8000_0003, 0).digest = digest("patched for 1024");
    guest.measure();
    for question in [Question::new(&guest), Question::without_log(&guest)] {
        assert_eq!(question.codes(), ["kernel_patched"]);
        assert!(detail(&question.ask()).contains("1024 MiB"), "{}", detail(&question.ask()));
    }
    let old = shape(|facts| facts.qemu = OLD);
    let mut guest = Guest::new(&image(), &old);
    guest.event(0x8000_0003, 0).digest = digest("kernel");
    guest.measure();
    for question in [Question::new(&guest).on(old.clone()), Question::without_log(&guest).on(old.clone())] {
        assert_eq!(question.codes(), ["kernel_not_patched"]);
    }
}

#[test]
fn another_size_of_memory_is_found() {
    for mib in [2048, 1536, 65536, 704] {
        let guest = Guest::new(&image(), &shape(|facts| facts.memory_mib = mib));
        for question in [Question::new(&guest), Question::without_log(&guest)] {
            let explanation = question.ask();
            assert_eq!(question.codes(), ["memory_size_differs"], "{mib}");
            assert!(detail(&explanation).contains(&format!("{mib} MiB")), "{}", detail(&explanation));
            let nearest = explanation.nearest.unwrap();
            assert_eq!(nearest.shape.facts().memory_mib, mib);
            assert_eq!(nearest.differs, []);
            assert_eq!(nearest.changes.len(), 1);
        }
    }
}

#[test]
fn with_an_old_qemu_memory_shows_in_the_kernel_too() {
    let old = |mib| shape(|facts| (facts.memory_mib, facts.qemu) = (mib, OLD));
    let guest = Guest::new(&image(), &old(2048));
    for question in [Question::new(&guest).on(old(1024)), Question::without_log(&guest).on(old(1024))] {
        assert_eq!(question.codes(), ["memory_size_differs", "kernel_patched_for_other_memory"]);
    }
}

#[test]
fn a_kernel_that_was_not_measured_for_the_memory_found_is_not_called_another() {
    let mut other = image();
    let address = other.kernel.patched[0].initrd_address + (512 << 20);
    other.kernel.patched.push(calculator::PatchedKernel { initrd_address: address, digest: digest("not published") });
    let old = |mib| shape(|facts| (facts.memory_mib, facts.qemu) = (mib, OLD));
    let guest = Guest::new(&other, &old(1536));
    for question in [Question::new(&guest).on(old(1024)), Question::without_log(&guest).on(old(1024))] {
        assert_eq!(question.codes(), ["memory_size_differs", "kernel_undetermined"]);
        let nearest = question.ask().nearest.unwrap();
        assert_eq!((nearest.shape, nearest.differs), (old(1536), vec![RegisterName::Rtmr1]));
    }
}

#[test]
fn a_size_of_memory_that_is_not_tried_is_not_guessed() {
    let guest = Guest::new(&image(), &shape(|facts| facts.memory_mib = 1025));
    assert_eq!(Question::new(&guest).codes(), ["memory_layout_unknown"]);
    assert_eq!(Question::without_log(&guest).codes(), ["cause_unknown"]);
}

#[test]
fn other_vcpus_and_another_qemu_are_found() {
    let guest = Guest::new(&image(), &shape(|facts| facts.vcpus = 4));
    for question in [Question::new(&guest), Question::without_log(&guest)] {
        assert_eq!(question.codes(), ["vcpu_count_differs"]);
        assert_eq!(question.ask().nearest.unwrap().shape.facts().vcpus, 4);
    }
    let guest = Guest::new(&image(), &shape(|facts| facts.qemu = OLD));
    for question in [Question::new(&guest), Question::without_log(&guest)] {
        assert_eq!(question.codes(), ["qemu_version_differs", "kernel_patched"]);
        assert_eq!(question.ask().nearest.unwrap().changes[0].field, "shape.qemu");
    }
    let both = Guest::new(&image(), &shape(|facts| (facts.vcpus, facts.memory_mib) = (4, 65536)));
    for question in [Question::new(&both), Question::without_log(&both)] {
        assert_eq!(question.codes(), ["memory_size_differs", "vcpu_count_differs"]);
    }
}

#[test]
fn acpi_files_of_no_known_machine_are_said_to_be_so() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.event(0xa, 2).digest = digest("hostile tables");
    guest.measure();
    assert_eq!(Question::new(&guest).codes(), ["acpi_tables_unknown"]);
    assert_eq!(Question::without_log(&guest).codes(), ["cause_unknown"]);
}

#[test]
fn a_machine_without_acpi_reference_is_neither_match_nor_mismatch() {
    let odd = shape(|facts| facts.vcpus = 4);
    let guest = Guest::new(&image(), &odd);
    let mut question = Question::new(&guest).on(odd);
    question.acpi.retain(|reference| reference.vcpus != 4);
    let explanation = question.ask();
    assert_eq!(question.codes(), ["acpi_not_published"]);
    assert_eq!(explanation.register(RegisterName::Rtmr0).unwrap().verdict, Verdict::NotCompared);
    assert!(!explanation.matches);
    let events = &explanation.register(RegisterName::Rtmr0).unwrap().events;
    let unknown = events.iter().filter(|event| event.verdict == EventVerdict::Unknown).count();
    assert_eq!((unknown, events.len()), (3, 13), "all else is compared");
    assert_eq!(explanation.register(RegisterName::Rtmr1).unwrap().verdict, Verdict::Match);
}

#[test]
fn another_firmware_and_another_page_order_are_told_apart() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.registers.mr_td = digest("two pass");
    assert_eq!(Question::new(&guest).codes(), ["firmware_page_order"]);
    guest.registers.mr_td = digest("another build");
    assert_eq!(Question::new(&guest).codes(), ["firmware_differs"]);
    let mut other = image();
    other.firmware.mr_td_per_page = digest("another build");
    let images = [("1.2".to_owned(), &other)];
    let mut question = Question::new(&guest);
    question.knowledge = Knowledge { images: &images, ..Knowledge::default() };
    assert_eq!(question.codes(), ["firmware_of_other_release"]);
}

#[test]
fn secure_boot_variables_are_named() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    for (nth, (name, value)) in [("SecureBoot", &[1_u8][..]), ("PK", &[7; 90])].into_iter().enumerate() {
        let event = guest.event(0x8000_0001, nth);
        event.data = world::variable(name, value);
        event.digest = Sha384Digest::of(&event.data);
    }
    guest.measure();
    let question = Question::new(&guest);
    assert_eq!(question.codes(), ["secure_boot_variables"]);
    assert!(detail(&question.ask()).contains("SecureBoot"), "{}", detail(&question.ask()));
    assert_eq!(Question::without_log(&guest).codes(), ["cause_unknown"]);
}

#[test]
fn another_volume_and_other_boot_options_are_named() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.event(0x8000_000a, 0).digest = digest("another volume");
    guest.measure();
    assert_eq!(Question::new(&guest).codes(), ["configuration_volume_differs"]);
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let order = guest.event(0x8000_0002, 0);
    order.data = world::variable("BootOrder", &[1, 0, 0, 0]);
    order.digest = Sha384Digest::of(&[1, 0, 0, 0]);
    let mut disk = order.clone();
    disk.data = world::variable("Boot0001", b"x");
    let at = guest.events.iter().position(|event| event.event_type == 0x8000_0002).unwrap();
    guest.events.insert(at + 1, disk);
    guest.measure();
    assert_eq!(Question::new(&guest).codes(), ["boot_options_differ"]);
}

#[test]
fn another_order_of_events_is_another_generation() {
    // EDK II before 2024.11 ends RTMR0 with the separator that is now in RTMR1.
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let separator = guest.event(4, 1);
    assert_eq!(separator.register, RegisterName::Rtmr1);
    separator.register = RegisterName::Rtmr0;
    guest.measure();
    let question = Question::new(&guest);
    assert_eq!(question.codes(), ["firmware_event_order", "firmware_event_order"]);
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.events.swap(1, 0);
    guest.measure();
    assert_eq!(Question::new(&guest).codes(), ["firmware_event_order"]);
}

#[test]
fn added_and_missing_events_are_counted_not_compared() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let mut rom = guest.event(0x8000_0003, 0).clone();
    rom.digest = digest("an option ROM");
    let kernel = guest.events.iter().position(|event| event.event_type == 0x8000_0003).unwrap();
    guest.events.insert(kernel, rom);
    guest.measure();
    let question = Question::new(&guest);
    assert_eq!(question.codes(), ["event_added"]);
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.events.pop();
    guest.measure();
    assert_eq!(Question::new(&guest).codes(), ["event_missing"]);
}

#[test]
fn a_foreign_log_says_nothing_about_the_quote() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let registers = guest.registers.clone();
    guest.event(6, 0).digest = digest("another command line");
    let question = Question::new(&guest);
    let explanation = question.ask();
    assert_eq!(guest.registers, registers, "the quote is as released");
    assert_eq!(question.codes(), ["log_not_of_this_quote"]);
    assert_eq!(explanation.register(RegisterName::Rtmr2).unwrap().verdict, Verdict::Match);
    assert_eq!(explanation.log, LogStanding::Partly);
    // A quote of another command line beside a log that claims the released one: the log does not hide it.
    let mut other = image();
    other.command_line.push_str(" debug");
    let mut guest = Guest::new(&other, &shape(|_| ()));
    guest.events = Guest::new(&image(), &shape(|_| ())).events;
    assert_eq!(Question::new(&guest).codes(), ["log_not_of_this_quote", "command_line_changed"]);
}

#[test]
fn a_log_that_goes_on_after_the_quote_is_seen() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let mut more = guest.events.last().unwrap().clone();
    more.digest = digest("later");
    guest.events.push(more);
    let question = Question::new(&guest);
    assert_eq!(question.codes(), ["log_goes_beyond_quote"]);
    let explanation = question.ask();
    let rtmr_1 = explanation.register(RegisterName::Rtmr1).unwrap();
    assert_eq!((rtmr_1.log, rtmr_1.verdict), (RegisterLog::Beyond, Verdict::Match));
    guest.events.retain(|event| event.register != RegisterName::Rtmr1);
    assert_eq!(Question::new(&guest).codes(), ["log_incomplete"]);
}

#[test]
fn registers_that_nothing_was_measured_into_are_said_to_be_empty() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    guest.events.clear();
    guest.measure();
    assert_eq!(Question::without_log(&guest).codes(), ["register_empty"; 3]);
}

#[test]
fn the_configuration_is_compared_with_mr_config_id() {
    let good = Guest::new(&image(), &shape(|_| ()));
    let codes = |change: &dyn Fn(&mut Guest)| {
        let mut guest = good.clone();
        change(&mut guest);
        let other: [(String, &[u8]); 1] = [("b.json".to_owned(), b"another")];
        let mut question = Question::new(&guest);
        question.knowledge = Knowledge { configurations: &other, ..Knowledge::default() };
        question.codes()
    };
    assert_eq!(codes(&|guest| guest.registers.mr_config_id = Sha384Digest::ZERO), ["configuration_not_measured"]);
    assert_eq!(codes(&|guest| guest.registers.mr_config_id = digest("another")), ["configuration_of_other"]);
    assert_eq!(codes(&|guest| guest.configuration.push(b'\n')), ["configuration_formatting"]);
    assert_eq!(codes(&|guest| guest.configuration[2] ^= 1), ["configuration_differs"]);
    assert_eq!(codes(&|guest| guest.registers.mr_owner = digest("me")), ["owner_not_zero"]);
}

#[test]
fn rtmr_3_is_explained_by_its_events() {
    let good = Guest::new(&image(), &shape(|_| ()));
    let codes = |change: &dyn Fn(&mut Guest), measured: bool| {
        let mut guest = good.clone();
        change(&mut guest);
        if measured {
            guest.measure();
        }
        Question::new(&guest).codes()
    };
    assert_eq!(codes(&|guest| guest.runtime.swap(1, 2), true), ["runtime_event_order"]);
    assert_eq!(codes(&|guest| guest.runtime.insert(3, boot()[2].clone()), true), ["runtime_event_repeated"]);
    assert_eq!(codes(&|guest| drop(guest.runtime.remove(4)), true), ["runtime_event_missing"]);
    assert_eq!(codes(&|guest| drop(guest.runtime.pop()), true), ["runtime_event_missing"]);
    assert_eq!(codes(&|guest| guest.runtime.push(boot()[8].clone()), true), ["runtime_event_missing"]);
    let other = types::RuntimeEvent::new(types::EventName::Time, b"another time").unwrap();
    assert_eq!(codes(&|guest| guest.runtime[5] = other.clone(), true), ["runtime_event_payload"]);
    // A complete boot is right, too.
    assert_eq!(codes(&|guest| guest.runtime = boot(), true), [""; 0]);
    // The list is right, the register is not.
    let mut guest = good.clone();
    guest.runtime.remove(1);
    guest.measure();
    guest.runtime = good.runtime.clone();
    let question = Question::new(&guest);
    assert_eq!(question.codes(), ["runtime_log_mismatch"]);
    assert!(detail(&question.ask()).contains("up to gpu without entropy"), "{}", detail(&question.ask()));
    assert_eq!(codes(&|guest| guest.registers.rtmr_3 = Sha384Digest::ZERO, false), ["runtime_events_beyond_quote"]);
    assert_eq!(codes(&|guest| guest.registers.rtmr_3 = digest("x"), false), ["runtime_log_mismatch"]);
}

#[test]
fn without_a_shape_the_machine_that_fits_is_taken() {
    let guest = Guest::new(&image(), &shape(|facts| facts.memory_mib = 65536));
    for question in [Question::new(&guest), Question::without_log(&guest)] {
        let explanation = Question { shape: None, ..question }.ask();
        assert!(explanation.matches, "{:?}", explanation.findings);
        assert_eq!(explanation.shape_from, ShapeSource::Nearest);
        assert_eq!(explanation.shape.unwrap().facts().memory_mib, 65536);
    }
}

#[test]
fn two_causes_are_two_findings() {
    let mut other = image();
    other.initrd = digest("another initrd");
    other.command_line.push_str(" debug");
    let guest = Guest::new(&other, &shape(|facts| facts.memory_mib = 65536));
    assert_eq!(Question::new(&guest).codes(), ["memory_size_differs", "command_line_changed", "initrd_differs"]);
    let explanation = Question::without_log(&guest).ask();
    let codes: Vec<_> = explanation.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["memory_size_differs", "cause_unknown"]);
    assert_eq!(all_acpi().len(), 8);
}

#[test]
fn with_an_old_qemu_another_initrd_leaves_the_kernel_open() {
    let old = shape(|facts| facts.qemu = OLD);
    let mut other = image();
    other.initrd = digest("another initrd");
    other.kernel.patched[0].digest = digest("patched for another initrd");
    let guest = Guest::new(&other, &old);
    assert_eq!(Question::new(&guest).on(old).codes(), ["kernel_undetermined", "initrd_differs"]);
}
