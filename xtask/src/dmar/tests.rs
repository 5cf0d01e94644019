use iommu::dmar::HeaderFlags;
use iommu::dmar::builder::{ScopeBytes, TableBytes};
use serde_json::{Value, json};

use super::*;

fn table() -> TableBytes {
    TableBytes::new()
        .flags(HeaderFlags::INTR_REMAP | HeaderFlags::DMA_CTRL_PLATFORM_OPT_IN)
        .drhd(0xfed9_0000, 0, false, &[ScopeBytes::endpoint(0, &[(2, 0)])])
        .drhd(
            0xfed9_1000,
            0,
            true,
            &[ScopeBytes::io_apic(2, 0xf0, (0x1f, 0)), ScopeBytes::acpi(1, 0, (0x15, 1))],
        )
        .rmrr(0x3d80_0000, 0x3fff_ffff, 0, &[ScopeBytes::bridge(0, &[(0x1c, 0), (0, 1)])])
        .atsr(0, true, &[])
        .rhsa(0xfed9_1000, 3)
        .andd(1, b"\\_SB.I2C1\0")
        .satc(1, true, &[ScopeBytes::hpet(0, 0, (3, 0))])
        .sidp(0, &[ScopeBytes::endpoint(0, &[(4, 0)]).with_byte(2, 8)])
        .structure(0x55, &[1, 2], &[])
}

#[test]
fn text_shows_every_structure_with_addresses_in_hexadecimal() {
    let report = Report::of(&table().finish(), false);
    assert_eq!(report.error, None);
    let expected = "\
DMAR revision 1, 0xde bytes, checksum right
made by \"SLUICE\" \"TESTDMAR\" 0x1, with \"TEST\" 0x1
host address width 39 bits, flags: INTR_REMAP DMA_CTRL_PLATFORM_OPT_IN

0x0030  DRHD  unit 0 at 0xfed90000, 0x1000 bytes, segment 0000
              endpoint 00:02.0

0x0048  DRHD  unit 1 at 0xfed91000, 0x1000 bytes, segment 0000, INCLUDE_PCI_ALL
              I/O APIC 2 f0:1f.0
              ACPI device 1 00:15.1

0x0068  RMRR  memory 0x3d800000-0x3fffffff, segment 0000
              bridge 00:1c.0/00.1

0x008a  ATSR  root ports with ATS, segment 0000, ALL_PORTS

0x0092  RHSA  unit at 0xfed91000 is close to domain 0x3

0x00a6  ANDD  ACPI device 1 is \"\\\\_SB.I2C1\"

0x00b8  SATC  devices with a translation cache, segment 0001, ATC_REQUIRED
              HPET 0 00:03.0

0x00c8  SIDP  properties of devices, segment 0000
              endpoint 00:04.0: ATC_HARDENED

0x00d8  unknown structure type 0x55  0x6 bytes

warning: offset 0xd8: unknown structure type 0x55, 6 bytes, skipped
";
    assert_eq!(report.output, expected);
}

#[test]
fn json_has_the_same() {
    let report = Report::of(&table().finish(), true);
    let value: Value = serde_json::from_str(&report.output).unwrap();
    assert_eq!(value["header"]["host_address_bits"], 39);
    assert_eq!(value["header"]["checksum_ok"], true);
    assert_eq!(value["header"]["flags"], json!(["INTR_REMAP", "DMA_CTRL_PLATFORM_OPT_IN"]));
    let structures = value["structures"].as_array().unwrap();
    let types: Vec<_> = structures.iter().map(|structure| structure["type"].clone()).collect();
    let expected = json!(["DRHD", "DRHD", "RMRR", "ATSR", "RHSA", "ANDD", "SATC", "SIDP", 0x55]);
    assert_eq!(json!(types), expected);
    let scope = json!({
        "type": "io_apic", "id": 2, "offset": 0x58, "flags": [], "start_bus": 0xf0,
        "path": [{ "device": 0x1f, "function": 0 }],
    });
    assert_eq!(structures[1]["scopes"][0], scope);
    assert_eq!(structures[1]["base"], "0xfed91000");
    let region = json!({
        "type": "RMRR", "offset": 0x68, "segment": 0, "first": "0x3d800000", "last": "0x3fffffff",
        "scopes": [{
            "type": "bridge", "id": null, "offset": 0x80, "flags": [], "start_bus": 0,
            "path": [{ "device": 0x1c, "function": 0 }, { "device": 0, "function": 1 }],
        }],
    });
    assert_eq!(structures[2], region);
    assert_eq!(structures[7]["scopes"][0]["flags"], json!(["ATC_HARDENED"]));
    let message = "offset 0xd8: unknown structure type 0x55, 6 bytes, skipped";
    assert_eq!(value["warnings"], json!([{ "offset": 0xd8, "message": message }]));
    assert_eq!(value["error"], Value::Null);
}

#[test]
fn firmwares_mistakes_are_warnings_and_no_errors() {
    let scope = [ScopeBytes::endpoint(0, &[(2, 0)])];
    let mut bytes = TableBytes::new()
        .drhd(0, 0, true, &[])
        .drhd(0xfed9_0000, 0, false, &scope)
        .drhd(0xfed9_0000, 0, false, &scope)
        .rmrr(0x2000, 0x1fff, 0, &scope)
        .rmrr(0x3001, 0x3fff, 0, &scope)
        .finish();
    bytes[9] ^= 0xff;
    bytes.push(0);
    let report = Report::of(&bytes, false);
    assert_eq!(report.error, None);
    for expected in [
        "checksum wrong",
        "bad checksum",
        "INCLUDE_PCI_ALL unit is not the last",
        "no unit can be at base address 0x0",
        "overlaps the registers",
        "RMRR is reversed",
        "RMRR is unaligned",
        "trailing bytes: 1 ",
    ] {
        assert!(report.output.contains(expected), "{expected}:\n{}", report.output);
    }
}

#[test]
fn what_precedes_an_error_is_shown() {
    let bytes = TableBytes::new().drhd(0xfed9_0000, 0, true, &[]).raw(&[1, 0, 0, 0]).finish();
    let text = Report::of(&bytes, false);
    assert!(text.output.contains("unit 0 at 0xfed90000"), "{}", text.output);
    assert!(text.output.contains("checksum not known"));
    assert_eq!(text.error.unwrap().offset(), 0x40);
    assert!(text.output.ends_with("\nerror: RMRR at offset 0x40: length 0 is below 24\n"), "{}", text.output);
    let value: Value = serde_json::from_str(&Report::of(&bytes, true).output).unwrap();
    let error = json!({ "offset": 0x40, "message": "RMRR at offset 0x40: length 0 is below 24" });
    assert_eq!(value["error"], error);
    assert_eq!(value["structures"].as_array().unwrap().len(), 1);
}

/// What of a table can be read counts, and what cannot is named: by offset, in the output and as the reason.
#[test]
fn only_a_table_of_which_nothing_can_be_read_is_a_failure() {
    let one = || TableBytes::new().drhd(0xfed9_0000, 0, true, &[]);
    let overlapping = ScopeBytes::endpoint(0, &[(2, 0)]).with_byte(1, 40);
    let whole = one().finish();
    let cut = one().rhsa(0xfed9_0000, 1).finish();
    let cases = [
        ("whole", whole.clone(), None, 0),
        ("no structures, none expected", TableBytes::new().finish(), None, 0),
        ("a structure of no bytes behind a good one", one().raw(&[1, 0, 0, 0]).finish(), Some(0x40), 0),
        (
            "a structure past the end behind a good one",
            one().raw(&[1, 0, 40, 0, 0, 0]).finish(),
            Some(0x40),
            0,
        ),
        ("cut off inside the second", cut[..cut.len() - 3].to_vec(), Some(0x40), 0),
        ("cut off between two", cut[..0x40].to_vec(), Some(0x40), 0),
        (
            "a scope that reaches into the next structure",
            one().drhd(0x1000, 0, false, &[overlapping]).finish(),
            Some(0x50),
            0,
        ),
        (
            "a structure of no bytes first",
            TableBytes::new().raw(&[0, 0, 0, 0]).finish(),
            Some(0x30),
            UNREADABLE,
        ),
        ("cut off inside the first", whole[..0x3f].to_vec(), Some(0x30), UNREADABLE),
        ("half a header", whole[..20].to_vec(), Some(20), UNREADABLE),
        ("another table", [b"FACP", &whole[4..]].concat(), Some(0), UNREADABLE),
        ("nothing", Vec::new(), Some(0), UNREADABLE),
    ];
    for (what, bytes, offset, code) in cases {
        let text = Report::of(&bytes, false);
        assert_eq!(text.error.map(|error| error.offset()), offset, "{what}");
        assert_eq!(text.exit_code(), code, "{what}");
        assert_eq!(text.output.contains("unit 0 at 0xfed90000"), text.structures > 0, "{what}");
        let json = Report::of(&bytes, true);
        assert_eq!(json.exit_code(), code, "{what}");
        let value: Value = serde_json::from_str(&json.output).unwrap();
        assert_eq!(value["error"]["offset"].as_u64(), offset.map(|offset| offset as u64), "{what}");
    }
}

#[test]
fn without_a_header_there_is_only_the_error() {
    let report = Report::of(b"DMAR", false);
    assert_eq!(report.output, "");
    assert_eq!(report.error.unwrap(), DmarError::HeaderTruncated { available: 4 });
    let value: Value = serde_json::from_str(&Report::of(b"", true).output).unwrap();
    assert_eq!(value["error"]["message"], "header truncated: 0 of 48 bytes");
}

#[test]
fn names_that_are_no_text_are_escaped() {
    let bytes = TableBytes::new().drhd(0x1000, 0, true, &[]).andd(1, b"A\x1b[2J\"\xff\0").finish();
    let text = Report::of(&bytes, false).output;
    assert!(text.contains(r#"is "A\x1b[2J\"\xff""#), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn arguments_in_any_order() {
    let read = |words: &[&str]| read_arguments(&mut Parser::from_args(words));
    let expected = |input: &str, json| Some(Arguments { input: input.into(), json });
    assert_eq!(read(&["table.dat"]).unwrap(), expected("table.dat", false));
    assert_eq!(read(&["--json", "-"]).unwrap(), expected("-", true));
    assert_eq!(read(&["-", "--json"]).unwrap(), expected("-", true));
    assert_eq!(read(&["--help"]).unwrap(), None);
    for words in [&[][..], &["a", "b"], &["--wrong", "a"], &["--json"]] {
        assert!(read(words).is_err(), "{words:?}");
    }
}
