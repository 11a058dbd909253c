//! A message's headers, whoever wrote them: read, published on, and read again as the same.

#![no_main]

use amq_protocol_types::parsing::parse_field_table;
use consent_gate::broker::headers;
use consent_gate::verdict::history::History;
use lapin::BasicProperties;
use lapin::types::FieldTable;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let framed = [&length[..], bytes].concat();
    let Ok((_, table)): Result<(&[u8], FieldTable), _> = parse_field_table(&framed[..]) else { return };
    let received = BasicProperties::default().with_headers(table);
    let _ = (headers::traceparent(&received), headers::report_to(&received), headers::reason(&received));
    let _ = (headers::moved(&received), headers::returns(&received));
    let history = History::read(&received);
    let _ = headers::died(&received, &history);
    for (name, value) in received.headers().iter().flat_map(FieldTable::inner) {
        let _ = headers::is_impersonal(name.as_str(), value);
    }
    let published = headers::for_publish(&received, &history, None);
    let again = History::read(&published);
    assert_eq!(again.attempts, history.attempts, "attempts are counted on");
    // Compared as text: a header may be NaN, which equals nothing.
    let second = headers::for_publish(&published, &again, None);
    assert_eq!(format!("{second:?}"), format!("{published:?}"), "the second time as the first");
    let _ = (headers::for_replay(&received, "consent-gate.report.1"), headers::for_return(&received));
});
